"""The curves of a run: log.jsonl holds the rows, curves.png shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("Curves need matplotlib: pip install nystromer[train].") from error

LOG, CURVES = "log.jsonl", "curves.png"
NOT_DRAWN = re.compile(r"(_runtime|_per_second|_flos|train_.*|epoch|step|learning_rate|grad_norm)$")


def write_curves(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes Trainer's log history as log.jsonl and curves.png."""
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
    curves_figure(history).savefig(folder / CURVES)


def curves_figure(history: Sequence[dict[str, Any]]) -> Figure:
    """Losses on the left, everything else that was measured on the right, against steps."""
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
    """{name: [(step, value), ...]} of what there is to draw."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for name, value in row.items():
            if isinstance(value, (int, float)) and not NOT_DRAWN.search(name):
                found.setdefault(name, []).append((row["step"], value))
    return found
