"""Draws the demo's own figures, sized to be read on a phone."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from nystromer.plots import BLACK, BLUE, GREY
from nystromer.recipes.demo.sample import Sample
from nystromer.recipes.demo.twins import Twin

NAMES = {
    "exact": ("exact", BLACK, -14),
    "nystrom": ("Nyström", BLUE, 14),
}  # points above its line's end
BIN = 8  # bytes of a cell of the heat strip


def accuracy_figure(twins: dict[str, Twin], majority: float) -> Figure:
    """Draws held-out accuracy against the seconds spent in training steps."""
    figure = Figure(figsize=(6.2, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for twin in twins.values():
        name, colour, above = NAMES[twin.name]
        seconds, accuracy = zip(*twin.history, strict=True)
        axes.plot(seconds, accuracy, "o-", color=colour, linewidth=2)
        axes.annotate(
            name,
            (seconds[-1], accuracy[-1]),
            (0, above),
            textcoords="offset points",
            color=colour,
            ha="center",
            va="center",
            size=11,
        )
    axes.axhline(majority, color=GREY, linewidth=1, linestyle="--")
    axes.text(0, majority, " always the most frequent package", color=GREY, size=10, va="bottom")
    axes.set(ylim=(0, 1), xlim=(0, None))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("seconds of training", size=11)
    axes.set_ylabel("held-out windows named right", size=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def rows_figure(sample: Sample) -> Figure:
    """Draws the class token's row as a heat strip, three ways."""
    strips = {
        "Nyström twin": sample.nystrom,
        "the same weights under exact attention": sample.same_weights,
        "exact twin": sample.exact,
    }
    figure = Figure(figsize=(6.2, 2.9), dpi=150, layout="constrained")
    grid = figure.subplots(len(strips), 1, sharex=True)
    n = len(sample.nystrom)
    for axes, (title, row) in zip(grid, strips.items(), strict=True):
        cells = row[: n - n % BIN].reshape(1, -1, BIN).mean(-1)
        top = np.quantile(cells, 0.98)
        axes.imshow(cells, aspect="auto", cmap="Blues", vmin=0, vmax=top, extent=(0, n, 0, 1))
        axes.set_title(title, loc="left", size=10)
        axes.set_yticks([])
    grid[-1].set_xlabel("byte of the window", size=10)
    return figure
