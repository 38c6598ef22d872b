"""`calibrate`: measures an encoder and chooses the attention of every layer under a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from rich.console import Console
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from nystromer.checks import check_positive
from nystromer.hf.calibration import costs
from nystromer.hf.calibration.allocate import Allocation, Price, allocations, options, total
from nystromer.hf.calibration.fidelity import Batch, exact_states, fidelity
from nystromer.hf.calibration.results import Calibration, Trial
from nystromer.hf.calibration.survey import LayerSurvey, exact_choice, survey
from nystromer.hf.conversion.plan import LayerChoice, Plan

TRIED = 8  # plans measured on the way from the cheapest to exact attention


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    num_landmarks: int = 64,
    max_exact_layers: int | None = None,
    max_error: float | None = None,
    max_keys: float | None = None,
    max_time: float | None = None,
    length: int | None = None,
    figure: str | Path | None = None,
) -> Plan:
    """Plans another attention for an encoder, without training, from a few real batches.

    A layer may become Nyström (with the landmarks and the inverse that leave its output the least
    error, and a convolution over values fitted to what they leave), or, where keys or time are the
    budget, clustered with 1, 2, 3 or 4 M keys a query; and any of its heads may stay exact. Each is
    measured on the batches. Starting from the cheapest, the budget goes where it takes away the
    most error for its cost. Prints what it found.

    Args:
        model: An encoder with exact attention. It is not changed.
        batches: Inputs as the model takes them, of the kind it will see: a dozen sequences of at
            least 4 M tokens are enough.
        num_landmarks: M.
        max_exact_layers: A budget: how many layers' worth of heads may stay exact, all others being
            Nyström. None: as many as max_error needs, and none if that is None too.
        max_error: 1 - cosine between the mean last hidden states of a sequence and those under
            exact attention, averaged over the sequences. The plan is the cheapest that reaches it
            on `batches`. None: all that the budget allows.
        max_keys: A budget instead: scores a query (`LayerChoice.keys`), the mean over the layers
            that can be swapped; an exact head's are `length`.
        max_time: A budget instead: the time of these layers' attention as a share of exact
            attention's, measured here on random tokens.
        length: Tokens at which keys and time are counted; None means those of the longest batch.
        figure: Where to draw what it found (a .png, say); needs matplotlib.

    Returns:
        The plan: data that reads well as JSON (`to_json`), for `nystromize(plan=...)`.

    Raises:
        ValueError: If a budget is negative, too small for any plan, or not the only one, or as
            `survey`.
    """
    from nystromer.hf.calibration.report import summary, table

    found = calibration(
        model,
        batches,
        num_landmarks=num_landmarks,
        max_exact_layers=max_exact_layers,
        max_error=max_error,
        max_keys=max_keys,
        max_time=max_time,
        length=length,
    )
    Console().print(table(found))
    Console(highlight=False, markup=False).print(summary(found))
    if figure is not None:
        from nystromer.hf.calibration.figures import calibration_figure

        calibration_figure(found).savefig(figure)
    return found.plan


def calibration(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    num_landmarks: int = 64,
    max_exact_layers: int | None = None,
    max_error: float | None = None,
    max_keys: float | None = None,
    max_time: float | None = None,
    length: int | None = None,
) -> Calibration:
    """Does what `calibrate` does, returns all that was measured, and prints nothing."""
    budgets = {"max_exact_layers": max_exact_layers, "max_keys": max_keys, "max_time": max_time}
    kind, budget = _budget(budgets, max_error)
    if length is not None:
        check_positive("length", length)
    layers = survey(model, batches, num_landmarks)
    exact = exact_states(model, batches)
    length = length or max(x.shape[1] for x in exact)
    unit = "time" if kind == "max_time" else "keys"
    shown = price_in(unit, layers, length, model.device)
    few = kind == "max_exact_layers"
    attentions = ("nystrom",) if few else ("nystrom", "clustered")
    choices = [options(x, attentions, exact_layers if few else shown) for x in layers]
    plans = allocations(choices, budget)
    if total(plans[0]) > budget * (1 + 1e-9):
        raise ValueError(
            f"`{kind}` must be at least {total(plans[0]):.3g}, which the cheapest plan costs at "
            f"{length} tokens, got {budget:g}."
        )

    def trial(name: str, choices: Sequence[LayerChoice]) -> Trial:
        cost = sum(shown(x, c) for x, c in zip(layers, choices, strict=True) if x.reason is None)
        return Trial(name, cost, fidelity(model, batches, choices, exact))

    @cache
    def measured(plan: Allocation) -> Trial:
        return trial("the plan", [option.choice for option in plan])

    chosen = _cheapest(plans, max_error, lambda plan: 1 - measured(plan).fidelity.cosine)
    path = [] if few else _few(allocations(choices))
    plain, best, *clustered = uniform(layers)
    alike = [
        ("every layer Nyström, segment means and six steps", plain),
        ("every layer Nyström, best scheme, fitted convolution", best),
        *((f"every layer clustered, {_keys(x)} keys", x) for x in clustered),
    ]
    plain_trial, best_trial, *clustered_trials = (
        trial(name, choices) for name, choices in tqdm(alike, "Swapping all layers alike")
    )
    *tried, final = (measured(x) for x in tqdm([*path, chosen], "Trying plans"))
    return Calibration(
        Plan(model.config.model_type, tuple(option.choice for option in chosen)),
        tuple(layers),
        length,
        unit,
        plain_trial,
        best_trial,
        tuple(clustered_trials),
        tuple(tried),
        final,
        max_error,
    )


def uniform(layers: Sequence[LayerSurvey]) -> list[list[LayerChoice]]:
    """Returns plans that do the same in every layer that can be swapped: Nyström with segment means
    and six steps, Nyström with each layer's best scheme, and clustered with each count of keys."""
    swappable = [layer for layer in layers if layer.reason is None]
    sizes = min(len(layer.of("clustered")) for layer in swappable)
    kinds: list[Callable[[LayerSurvey], LayerChoice]] = [
        plain_choice,
        lambda layer: layer.best().choice,
        *(partial(_clustered, size) for size in range(sizes)),
    ]
    return [[kind(x) if x.reason is None else exact_choice(x) for x in layers] for kind in kinds]


def _clustered(size: int, layer: LayerSurvey) -> LayerChoice:
    return layer.of("clustered")[size].choice


def _keys(choices: Sequence[LayerChoice]) -> int:
    return next(choice.keys for choice in choices if choice.attention != "exact")


def plain_choice(layer: LayerSurvey) -> LayerChoice:
    """Returns the choice of Nyström attention with segment means and six steps for this layer."""
    found = layer.schemes[0].choice
    return LayerChoice(layer.name, num_landmarks=found.num_landmarks, num_heads=layer.num_heads)


def _budget(budgets: Mapping[str, float | None], max_error: float | None) -> tuple[str, float]:
    """Returns the name and the size of the one budget that was given.

    Raises:
        ValueError: If one is negative, or there are two.
    """
    for name, value in {**budgets, "max_error": max_error}.items():
        if value is not None and value < 0:
            raise ValueError(f"`{name}` must be at least 0, got {value}.")
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) > 1:
        names = " and ".join(f"{name}={value:g}" for name, value in given.items())
        raise ValueError(f"A plan has one budget, got {names}; leave out all but one.")
    for name, value in given.items():
        return name, value
    return "max_exact_layers", 0.0 if max_error is None else math.inf


def exact_layers(layer: LayerSurvey, choice: LayerChoice) -> float:
    return costs.exact_share(choice)


def price_in(unit: str, layers: Sequence[LayerSurvey], length: int, device: torch.device) -> Price:
    """Returns a function that prices a layer's choice, so that the sum over the layers is the mean
    of their keys, or their share of the time of exact attention."""
    swappable = [layer for layer in layers if layer.reason is None]
    if unit == "keys":
        return lambda layer, choice: costs.keys(choice, length) / len(swappable)
    schemes: dict[int, list[LayerChoice]] = {}
    for layer in swappable:
        known = [plain_choice(layer), *(scheme.choice for scheme in layer.schemes)]
        schemes.setdefault(layer.head_dim, []).extend(known)
    clocks = {d: costs.Clock(x, length, d, device) for d, x in schemes.items()}
    whole = sum(clocks[layer.head_dim](exact_choice(layer)) for layer in swappable)
    return lambda layer, choice: clocks[layer.head_dim](choice) / whole


def _cheapest(
    plans: Sequence[Allocation], max_error: float | None, error: Callable[[Allocation], float]
) -> Allocation:
    """Returns the first plan with at most that error, or the last plan if none was asked for or the
    last has more. Later plans are taken to have less error."""
    if max_error is None or error(plans[-1]) > max_error:
        return plans[-1]
    low, high = -1, len(plans) - 1
    with tqdm(desc="Searching the cheapest plan", total=high.bit_length()) as bar:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if error(plans[middle]) <= max_error else (middle, high)
            bar.update()
    return plans[high]


def _few(plans: Sequence[Allocation]) -> list[Allocation]:
    """Returns some of the plans, from the cheapest to the last that is not exact, at equal steps of
    cost on a logarithmic scale: the first steps buy the most."""
    costs = [math.log(total(plan)) for plan in plans[:-1]]
    if not costs:
        return []
    wanted = [costs[0] + (costs[-1] - costs[0]) * i / (TRIED - 1) for i in range(TRIED)]
    return [plans[i] for i in sorted({bisect_left(costs, x - 1e-9) for x in wanted})]
