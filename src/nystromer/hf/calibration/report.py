"""Tells a calibration in words: a table of the layers, and sentences about the plan."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from nystromer.hf.calibration.results import Calibration, Trial
from nystromer.hf.calibration.survey import LayerSurvey
from nystromer.hf.conversion.plan import LayerChoice


def table(found: Calibration) -> Table:
    """Returns a table with one line for each layer."""
    keys = f"clustered\n{found.keys} keys"
    shown = Table(
        title=f"layer 0: {found.layers[0].name}",
        caption="error: of the layer's output against exact attention, by the plain Nyström swap, "
        "its best scheme, and clustered attention with as many keys; alone: 1 - cosine when "
        "only this layer is swapped, by the last two",
        box=SIMPLE,
        width=80,
    )
    for name in ("layer", "error:\nplain", "\nbest", keys, "alone:\nbest", "\nclustered"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("plan", "exact\nheads"):
        shown.add_column(name)
    for i, (layer, choice) in enumerate(zip(found.layers, found.plan.layers, strict=True)):
        figures = _figures(layer) if layer.reason is None else ["-"] * 5
        kept = ", ".join(map(str, choice.exact_heads)) or "none"
        shown.add_row(
            str(i), *figures, described(choice), "all" if choice.attention == "exact" else kept
        )
    return shown


def _figures(layer: LayerSurvey) -> list[str]:
    typical = [layer.typical(attention) for attention in ("nystrom", "clustered")]
    errors = ["-" if x is None else f"{layer.error(x):.2f}" for x in typical]
    alone = ["-" if x is None or x.alone is None else f"{1 - x.alone.cosine:.4f}" for x in typical]
    return [f"{layer.plain:.2f}", *errors, *alone]


def described(choice: LayerChoice) -> str:
    """Returns a few words for a layer's choice: "clustered, 128 keys"."""
    if choice.attention == "exact":
        return "exact"
    if choice.attention == "clustered":
        return f"clustered, {choice.keys} keys"
    inverse = "six steps" if choice.ridge is None else f"ridge {choice.ridge:g}"
    return f"{choice.num_landmarks} {choice.landmarks.replace('_', ' ')}, {inverse}"


def summary(found: Calibration) -> str:
    """Returns sentences that say what the layers lose, and what the plan costs and keeps."""
    lines = [f"{x.name} stays exact: {x.reason}." for x in found.layers if x.reason is not None]
    unit = "keys a query" if found.unit == "keys" else "share of time"
    lines.append(
        f"Cosine to the exact embedding, mean (worst), and {unit} at {found.length:,} tokens:"
    )
    trials = [found.plain, found.swapped, *found.clustered]
    if found.path or found.exact_heads:
        heads = f"the plan, {found.exact_heads} of {found.heads} heads exact"
        trials.append(Trial(heads, found.planned.cost, found.planned.fidelity))
    for trial in trials:
        x = trial.fidelity
        cost = cost_text(found.unit, trial.cost)
        lines.append(f"  {x.cosine:.4f} ({x.worst_cosine:.4f}) {cost:>5}  {trial.name}")
    shares = []
    for n in (512, 4096):
        ours, exact = found.multiplications(n)
        shares.append(f"{ours / exact:.0%} at {n:,} tokens")
    lines.append(f"Multiplications against exact attention: {', '.join(shares)}.")
    if found.max_error is not None and 1 - found.planned.fidelity.cosine > found.max_error:
        lines.append(f"max_error={found.max_error} is not reached within the budget.")
    return "\n".join(lines)


def cost_text(unit: str, cost: float) -> str:
    return f"{cost:,.0f}" if unit == "keys" else f"{cost:.0%}"
