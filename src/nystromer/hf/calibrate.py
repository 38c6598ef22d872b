"""calibrate: which heads of an encoder keep exact attention, and what the others do instead."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from nystromer.diagnostics import cost
from nystromer.hf.attend import KMEANS_STEPS
from nystromer.hf.plan import LayerChoice, Plan
from nystromer.hf.survey import Batch, Fidelity, LayerSurvey, exact_states, fidelity, survey


@dataclass(frozen=True)
class Calibration:
    """What was measured and chosen.

    Args:
        plan: For `nystromize(plan=...)`.
        layers: The survey of every layer.
        plain: All layers swapped with segment means and six steps.
        swapped: All layers swapped by their best schemes, no head exact.
        planned: The plan.
        max_error: What was asked for, if anything.
    """

    plan: Plan
    layers: tuple[LayerSurvey, ...]
    plain: Fidelity
    swapped: Fidelity
    planned: Fidelity
    max_error: float | None = None

    @property
    def exact_heads(self) -> int:
        """How many heads of the layers that could be swapped stay exact."""
        swappable = {layer.name: layer.num_heads for layer in self.layers if layer.reason is None}
        kept = (
            swappable.get(x.name, 0) if x.attention == "exact" else len(x.exact_heads)
            for x in self.plan.layers
        )
        return sum(kept)

    @property
    def heads(self) -> int:
        return sum(layer.num_heads for layer in self.layers)

    def multiplications(self, n: int) -> tuple[int, int]:
        """Of the attention over n tokens under the plan, and if all were exact."""
        ours = exact = 0
        for layer, choice in zip(self.layers, self.plan.layers, strict=True):
            d, kept = layer.head_dim, len(choice.exact_heads)
            price = cost(n, n, choice.num_landmarks, head_dim=d)
            full = price.exact_multiplications
            near = price.multiplications + n * d * (choice.conv_kernel_size or 0)
            if choice.landmarks == "kmeans":
                near += KMEANS_STEPS * n * choice.num_landmarks * 2 * d
            exact += layer.num_heads * full
            if choice.attention == "exact" or n < choice.exact_below:
                ours += layer.num_heads * full
            else:
                ours += kept * full + (layer.num_heads - kept) * near
        return ours, exact


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    num_landmarks: int = 64,
    max_exact_layers: int | None = None,
    max_error: float | None = None,
    figure: str | Path | None = None,
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
        figure: Where to draw what it found (a .png, say); needs matplotlib.

    Returns:
        The plan: data that reads well as JSON (`to_json`), for `nystromize(plan=...)`.

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
    Console().print(table(found))
    Console(highlight=False, markup=False).print(summary(found))
    if figure is not None:
        from nystromer.plots import calibration_figure

        calibration_figure(found).savefig(figure)
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
    ranked = rank_heads(layers)
    budget = len(ranked)
    if max_exact_layers is not None:
        budget = min(budget, max_exact_layers * max(x.num_heads for x in layers))
    elif max_error is None:
        budget = 0

    @functools.cache
    def measured(count: int) -> Fidelity:
        return fidelity(model, batches, choose(layers, ranked[:count]), exact)

    def is_close(count: int) -> bool:
        return max_error is not None and 1 - measured(count).cosine <= max_error

    with tqdm(desc="Searching the fewest exact heads", disable=max_error is None) as bar:
        few, many = -1, budget  # the fewest that are close lie in (few, many], if many are
        while many - few > 1 and is_close(many):
            middle = (few + many) // 2
            few, many = (few, middle) if is_close(middle) else (middle, many)
            bar.update()
    return Calibration(
        Plan(model.config.model_type, tuple(choose(layers, ranked[:many]))),
        tuple(layers),
        fidelity(model, batches, [plain_choice(x) for x in layers if x.reason is None], exact),
        measured(0),
        measured(many),
        max_error,
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
            for head, x in enumerate(squares):
                effect[i, head] = x / max(sum(squares), 1e-30) * layer.swapped.error**2
    return sorted(effect, key=lambda place: -effect[place])


def choose(layers: Sequence[LayerSurvey], exact: Sequence[tuple[int, int]]) -> list[LayerChoice]:
    """Every layer by the scheme that is best for its other heads; `exact` are (layer, head)."""
    choices = []
    for i, layer in enumerate(layers):
        heads = tuple(sorted(head for at, head in exact if at == i))
        if layer.reason is not None or len(heads) == layer.num_heads:
            choices.append(
                LayerChoice(layer.name, "exact", num_heads=layer.num_heads, note=layer.reason)
            )
        else:
            choices.append(replace(layer.best(heads).choice, exact_heads=heads))
    return choices


def plain_choice(layer: LayerSurvey) -> LayerChoice:
    """Segment means and six steps."""
    found = layer.schemes[0].choice
    return LayerChoice(layer.name, num_landmarks=found.num_landmarks, num_heads=layer.num_heads)


def table(found: Calibration) -> Table:
    """A line a layer."""
    shown = Table(
        title=f"layer 0: {found.layers[0].name}",
        caption="plain, best: error of the layer's output against exact attention, by the plain "
        "swap and by its best scheme; alone: 1 - cosine when only this layer is swapped",
        box=SIMPLE,
        width=80,
    )
    for name in ("layer", "plain", "best", "alone"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("landmarks", "inverse", "exact heads"):
        shown.add_column(name)
    for i, (layer, choice) in enumerate(zip(found.layers, found.plan.layers, strict=True)):
        if layer.swapped is None:
            shown.add_row(str(i), *["-"] * 5, "all")
            continue
        errors = (f"{layer.plain:.2f}", f"{layer.error(layer.best()):.2f}")
        alone = f"{1 - layer.swapped.cosine:.4f}"
        landmarks, inverse, kept = "-", "-", "all"
        if choice.attention != "exact":
            landmarks = f"{choice.num_landmarks} {choice.landmarks.replace('_', ' ')}"
            inverse = "six steps" if choice.ridge is None else f"ridge {choice.ridge:g}"
            kept = ", ".join(map(str, choice.exact_heads)) or "none"
        shown.add_row(str(i), *errors, alone, landmarks, inverse, kept)
    return shown


def summary(found: Calibration) -> str:
    """What follows from it, in sentences."""
    lines = [f"{x.name} stays exact: {x.reason}." for x in found.layers if x.reason is not None]
    lines.append("Cosine to the exact embedding, mean (worst):")
    stages = [
        ("every layer swapped, segment means and six steps", found.plain),
        ("every layer swapped, best landmarks and inverse, convolution", found.swapped),
    ]
    if found.exact_heads:
        stages.append(
            (f"the plan, {found.exact_heads} of {found.heads} heads exact", found.planned)
        )
    for name, x in stages:
        lines.append(f"  {x.cosine:.4f} ({x.worst_cosine:.4f})  {name}")
    shares = []
    for n in (512, 4096):
        ours, exact = found.multiplications(n)
        shares.append(f"{ours / exact:.0%} at {n:,} tokens")
    lines.append(f"Multiplications against exact attention: {', '.join(shares)}.")
    if found.max_error is not None and 1 - found.planned.cosine > found.max_error:
        lines.append(f"max_error={found.max_error} is not reached with as many exact heads.")
    return "\n".join(lines)
