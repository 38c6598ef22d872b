"""The colours, axes, labels and colour bars that all figures share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLACK, ORANGE, BLUE, GREEN, RED = "#000000", "#e69f00", "#0072b2", "#009e73", "#d55e00"
GREY, PURPLE = "#6f6f6f", "#cc79a7"


def grid(axes: Axes) -> None:
    """Draws faint lines behind the plot and takes away the frame above and at the right."""
    axes.grid(which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Writes the title and the names of both axes."""
    axes.set_title(title, loc="left", size=13)
    axes.set_xlabel(x_label, size=11)
    axes.set_ylabel(y_label, size=11)


def colour_bar(
    figure: FigureBase, image: AxesImage, axes: Axes | list[Axes], label: str, aspect: float
) -> None:
    """Draws the colours of an image and their values below its axes."""
    bar = figure.colorbar(image, ax=axes, location="bottom", extend="both", aspect=aspect)
    bar.set_label(label, size=11)
    bar.outline.set_visible(False)
    bar.formatter = FuncFormatter(lambda x, _: f"{x:g}")
    bar.minorticks_off()


def single_plot() -> tuple[Figure, Axes]:
    """Returns a new figure with one plot in it."""
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    grid(axes)
    return figure, axes


def name_lines(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes the names of lines at their right ends, given as (x, y, name, colour).

    Names at the right edge of the plot stand beside the ends. Where a line ends earlier, its name
    stands above the end if no other line is above it there, else below.
    """
    low, high = np.log(axes.get_ylim())
    height = 0.8 * figure.get_figheight() * 72  # of the axes, about, in points
    last = max((x for x, *_ in ends), default=0)
    free = -np.inf  # the lowest free place: names at the right edge stand 14 points apart
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        here = (np.log(y) - low) / (high - low) * height
        highest = max(np.interp(x, *np.array(line.get_data(), float)) for line in axes.lines)
        above = y >= highest
        offset, ha, va = ((0.0, 9.0), "center", "bottom") if above else ((6.0, -6.0), "left", "top")
        if x == last:
            free = max(here, free + 14)
            offset, ha, va = (9.0, free - here), "left", "center"
        axes.annotate(
            name,
            (x, y),
            offset,
            textcoords="offset points",
            color=colour,
            size=11,
            ha=ha,
            va=va,
        )


def plain_ticks(axes: Axes, ticks: Sequence[int]) -> None:
    """Labels the x axis with at most six of the numbers, as people write them: 65,536."""
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: -len(ticks) // 6 or 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))


def weights_norm(weights: np.ndarray) -> LogNorm:
    """Returns a logarithmic scale of colours down to a thousandth of the largest weights."""
    top = np.quantile(weights, 0.999)
    return LogNorm(top / 1000, top)


def as_array(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()
