"""The figure of `nystromer mil inspect`: how many patches the bags have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import isqrt

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from nystromer.plots.style import BLUE, GREEN, GREY, ORANGE, RED, label, single_plot

BINS = 30


def sizes_figure(sizes: Mapping[str, Sequence[int]]) -> Figure:
    """Returns a histogram of bag sizes on a logarithmic axis, the classes stacked.

    Args:
        sizes: Patches of every bag with at least one, by its class; the empty name for all bags.
    """
    figure, axes = single_plot()
    every = np.concatenate([np.asarray(x) for x in sizes.values()])
    low, high = np.log10(every.min()) - 0.02, np.log10(every.max()) + 0.02
    edges = np.logspace(low, high, min(BINS, 2 * isqrt(len(every)) + 4)).tolist()
    colours = [colour for colour, _ in zip(cycle((BLUE, ORANGE, GREEN, RED)), sizes, strict=False)]
    axes.hist(
        list(sizes.values()),
        edges,
        stacked=True,
        color=colours,
        label=list(sizes),
        edgecolor="white",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    middle = float(np.median(every))
    axes.axvline(middle, color=GREY, linewidth=1, linestyle="--")
    if len(sizes) > 1:
        axes.legend(frameon=False, fontsize=11)
    label(axes, f"Patches of {len(every):,} bags, median {middle:,.0f}", "patches of a bag", "bags")
    return figure
