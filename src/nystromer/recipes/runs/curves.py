"""The curves of a run: log.jsonl holds the rows, curves.png shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("Curves need matplotlib: pip install matplotlib.") from error

LOG, CURVES = "log.jsonl", "curves.png"
TIMES = re.compile(r"(_runtime|_per_second|_flos)$")
NOT_DRAWN = re.compile(r"(train_.*|epoch|step|learning_rate|grad_norm)$")


def write_curves(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes Trainer's log history as log.jsonl and curves.png.

    Times, and the summary of the training since it was last resumed, are left out: a run that was
    interrupted has the log of one that was not.
    """
    rows = [without_times(row) for row in history if "train_runtime" not in row]
    (folder / LOG).write_text(
        "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8"
    )
    curves_figure(history).savefig(folder / CURVES)


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the log without the numbers that tell how fast the machine was."""
    return {name: value for name, value in row.items() if not TIMES.search(name)}


def curves_figure(history: Sequence[dict[str, Any]]) -> Figure:
    """Draws losses on the left, and everything else that was measured on the right, by steps."""
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in curves(history).items():
        axes = left if name.endswith("loss") else right
        held_out = name.startswith("eval_")
        axes.plot(
            *zip(*points, strict=True),
            marker="o" if held_out or len(points) == 1 else None,
            markersize=4,
            label=name.removeprefix("eval_") + (", held out" if held_out else ", training"),
        )
    for axes, title in ((left, "Loss"), (right, "Metrics")):
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
        else:
            axes.set_axis_off()
    return figure


def curves(history: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Returns {name: [(step, value), ...]} of what there is to draw."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for name, value in without_times(row).items():
            if isinstance(value, (int, float)) and not NOT_DRAWN.search(name):
                found.setdefault(name, []).append((row["step"], value))
    return found
