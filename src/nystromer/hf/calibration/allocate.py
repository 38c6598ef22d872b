"""Divides a budget among the layers: it goes where it takes away the most error for its cost.

Every layer has options, each with a cost and an error. Those worth having lie on the lower convex
hull of error over cost. From the cheapest option of every layer on, the step is taken that lowers
the error most for its cost, and so on: each plan on the way has the least sum of errors that its
cost can buy. Errors of layers nearly add up (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from nystromer.hf.calibration.survey import LayerSurvey, exact_choice
from nystromer.hf.conversion.plan import LayerChoice

Price = Callable[[LayerSurvey, LayerChoice], float]


@dataclass(frozen=True)
class Option:
    """One way to do a layer, with its cost and its error.

    Args:
        cost: In the unit of the budget.
        error: ‖h - h*‖² / ‖h*‖² of the model's last hidden states if only this layer were so, as
            predicted.
    """

    choice: LayerChoice
    cost: float
    error: float


Allocation = tuple[Option, ...]  # one for every layer


def options(layer: LayerSurvey, attentions: Sequence[str], price: Price) -> list[Option]:
    """Returns all ways to do a layer: exact attention, every scheme of these attentions, and the
    Nyström schemes with their worst 1, 2, ... heads exact.

    What a scheme does to the model is what its attention's typical scheme does, which was
    measured, in proportion to ‖output - exact output‖², summed over the heads that are not exact.
    Clustered attention's few bad heads do less to a model than that says, so they stay.
    """
    exact = exact_choice(layer)
    if layer.reason is not None:  # no budget is for it
        return [Option(exact, 0.0, 0.0)]
    found = [Option(exact, price(layer, exact), 0.0)]
    for attention in attentions:
        typical = layer.typical(attention)
        if typical is None or typical.alone is None:
            continue
        effect = typical.alone.error**2 / max(sum(typical.squares), 1e-30)
        for scheme in layer.of(attention):
            worst = sorted(enumerate(scheme.squares), key=lambda pair: -pair[1])
            for count in range(layer.num_heads if attention == "nystrom" else 1):
                kept = tuple(sorted(head for head, _ in worst[:count]))
                choice = replace(scheme.choice, exact_heads=kept)
                left = sum(square for _, square in worst[count:])
                found.append(Option(choice, price(layer, choice), effect * left))
    return found


def hull(options: Sequence[Option]) -> list[Option]:
    """Returns the lower convex hull of the options: each costs more than the one before it, and
    takes away less error for each unit of cost."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda x: (x.cost, x.error)):
        if kept and option.error >= kept[-1].error:
            continue
        while len(kept) > 1 and worth(kept[-2], kept[-1]) <= worth(kept[-2], option):
            kept.pop()
        kept.append(option)
    return kept


def worth(before: Option, after: Option) -> float:
    """Returns how much error the step from one option to the next takes away for a unit of cost."""
    return (before.error - after.error) / max(after.cost - before.cost, 1e-30)


def allocations(layers: Sequence[Sequence[Option]], budget: float = math.inf) -> list[Allocation]:
    """Returns plans, an option for every layer: first the cheapest, then one step better each time.
    Steps that the budget does not hold are left out."""
    hulls = [hull(layer) for layer in layers]
    plan = [found[0] for found in hulls]
    steps = [
        (worth(before, after), i, after)
        for i, found in enumerate(hulls)
        for before, after in pairwise(found)
    ]
    plans = [tuple(plan)]
    for _, i, option in sorted(steps, key=lambda step: -step[0]):
        if total(plan) - plan[i].cost + option.cost <= budget * (1 + 1e-9):
            plan[i] = option
            plans.append(tuple(plan))
    return plans


def total(plan: Sequence[Option]) -> float:
    return sum(option.cost for option in plan)
