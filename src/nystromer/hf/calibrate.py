"""calibrate: which heads of an encoder keep exact attention, and what the others do instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from nystromer.hf.plan import LayerChoice, Plan
from nystromer.hf.survey import Batch, Fidelity, LayerSurvey, exact_states, fidelity, survey


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured and chosen.

    Args:
        plan: For `nystromize(plan=...)`.
        layers: The survey of every layer.
        plain: All layers swapped with segment means and six steps.
        swapped: All layers swapped by their best schemes, no head exact.
        planned: The plan.
    """

    plan: Plan
    layers: tuple[LayerSurvey, ...]
    plain: Fidelity
    swapped: Fidelity
    planned: Fidelity


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    num_landmarks: int = 64,
    max_exact_layers: int | None = None,
    max_error: float | None = None,
) -> Plan:
    """Plans Nyström attention for an encoder, without training, from a few real batches.

    Every layer gets the landmarks and the inverse with the least error of its output, and a
    convolution over values fitted to what they leave. Then heads are given back to exact attention,
    those first whose error matters most: attention to the neighbouring token has full rank and no
    M landmarks can hold it. A layer's worth of heads costs what an exact layer costs, but half as
    many leave the same error. Prints what it found.

    Args:
        model: An encoder with exact attention. It is not changed.
        batches: Inputs as the model takes them, of the kind it will see: a dozen sequences of at
            least 4 M tokens are enough.
        num_landmarks: M.
        max_exact_layers: How many layers' worth of heads may stay exact. None: as many as
            max_error needs, and none if that is None too.
        max_error: 1 - cosine between the mean last hidden states of a sequence and those under
            exact attention, averaged over the sequences. The plan keeps as few heads exact as reach
            it on `batches`. None: all that the budget allows.

    Returns:
        The plan.

    Raises:
        ValueError: If max_exact_layers or max_error is negative, or as `survey`.
    """
    found = calibration(
        model,
        batches,
        num_landmarks=num_landmarks,
        max_exact_layers=max_exact_layers,
        max_error=max_error,
    )
    show(found)
    return found.plan


def calibration(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    num_landmarks: int = 64,
    max_exact_layers: int | None = None,
    max_error: float | None = None,
) -> Calibration:
    """As `calibrate`, with everything that was measured; prints nothing."""
    for name, value in (("max_exact_layers", max_exact_layers), ("max_error", max_error)):
        if value is not None and value < 0:
            raise ValueError(f"`{name}` must be at least 0, got {value}.")
    layers = survey(model, batches, num_landmarks)
    exact = exact_states(model, batches)

    def measured(choices: Sequence[LayerChoice]) -> Fidelity:
        return fidelity(model, batches, choices, exact)

    ranked = rank_heads(layers)
    budget = len(ranked)
    if max_exact_layers is not None:
        budget = min(budget, max_exact_layers * max(x.num_heads for x in layers))
    elif max_error is None:
        budget = 0
    planned = measured(choose(layers, ranked[:budget]))
    few, many = -1, budget  # the least number of heads that reaches max_error lies in (few, many]
    if max_error is not None and 1 - planned.cosine <= max_error:
        with tqdm(desc="Searching the fewest exact heads") as bar:
            while many - few > 1:
                middle = (few + many) // 2
                tried = measured(choose(layers, ranked[:middle]))
                if 1 - tried.cosine <= max_error:
                    many, planned = middle, tried
                else:
                    few = middle
                bar.update()
    return Calibration(
        Plan(model.config.model_type, tuple(choose(layers, ranked[:many]))),
        tuple(layers),
        measured([plain_choice(x) for x in layers if x.reason is None]),
        measured(choose(layers, [])),
        planned,
    )


def rank_heads(layers: Sequence[LayerSurvey]) -> list[tuple[int, int]]:
    """(layer, head), the one whose error matters most first.

    A layer's effect on the last hidden states, ‖h - h*‖² when it alone is swapped, is divided among
    its heads as the squared errors of their outputs.
    """
    effect = {}
    for i, layer in enumerate(layers):
        if layer.swapped is not None:
            squares = layer.best().squares
            share = squares / squares.sum().clamp(min=1e-30)
            for head, x in enumerate(share.tolist()):
                effect[i, head] = x * layer.swapped.error**2
    return sorted(effect, key=lambda place: -effect[place])


def choose(
    layers: Sequence[LayerSurvey], exact: Sequence[tuple[int, int]]
) -> list[LayerChoice]:
    """Every layer by the scheme that is best for its other heads; `exact` are (layer, head)."""
    choices = []
    for i, layer in enumerate(layers):
        heads = tuple(sorted(head for at, head in exact if at == i))
        sizes = {"num_heads": layer.num_heads, "note": layer.reason}
        if layer.reason is not None or len(heads) == layer.num_heads:
            choices.append(LayerChoice(layer.name, "exact", **sizes))
        else:
            choices.append(replace(layer.best(heads).choice, exact_heads=heads))
    return choices


def plain_choice(layer: LayerSurvey) -> LayerChoice:
    """Segment means and six steps."""
    found = layer.schemes[0].choice
    return LayerChoice(layer.name, num_landmarks=found.num_landmarks, num_heads=layer.num_heads)


def show(found: Calibration) -> None: ...
