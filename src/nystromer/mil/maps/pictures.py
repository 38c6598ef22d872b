"""A map as pictures: over the slide or on an empty grid, the patches of both ends, flipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nystromer.mil.maps.faithfulness import Flipping
from nystromer.mil.maps.files import Map
from nystromer.mil.maps.methods import SIGNED
from nystromer.mil.slides import Slide
from nystromer.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, RED, colour_bar, label
from nystromer.plots.style import grid as grid_lines

LONGEST, ENDS = 2000, 8  # pixels of a thumbnail; patches of either end
PIXELS, GAP = 160, 12  # of a patch, and between two
COLOURS = (BLUE, ORANGE, GREEN, RED, BLACK)


def overlay_figure(found: Map, slide: Slide | None = None) -> Figure:
    """Returns a map in colours over the slide's thumbnail, or on a white grid if there is none.

    Scores that speak for and against are red and blue about zero; others are coloured by rank, for
    a few large weights would leave all else in one colour.
    """
    assert found.places is not None
    signed = found.method in SIGNED
    image = found.places.raster(found.scores if signed else found.ranks)
    left, right, bottom, top = found.places.extent
    if slide is not None:
        left, right, bottom, top = 0.0, slide.width, slide.height, 0.0
    ratio = np.clip((bottom - top) / max(right - left, 1e-9), 0.3, 2.5)
    panels = 2 if slide is not None else 1
    size = (min(6.0, 8 / ratio) * panels, min(6.0 * ratio, 8.0) + 1.3)
    figure = Figure(size, 150, layout="compressed")
    every = np.atleast_1d(figure.subplots(1, panels))
    axes = every[-1]
    if slide is not None:
        thumbnail = slide.thumbnail(LONGEST)
        for panel in every:
            panel.imshow(thumbnail, extent=(left, right, bottom, top))
        label(every[0], found.id, "", "")
    reach = float(np.quantile(np.abs(found.scores), 0.99)) or 1.0
    colours = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach} if signed else {"cmap": "magma"}
    alpha = 0.6 if slide is not None else 1.0
    shown = axes.imshow(
        image, extent=found.places.extent, alpha=alpha, interpolation="nearest", **colours
    )
    for panel in every:
        panel.set_xlim(left, right)
        panel.set_ylim(bottom, top)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_color(GREY)
    title = found.explained if slide is not None else f"{found.id}: {found.explained}"
    label(axes, title, "", "")
    what = f"{found.method}, log-odds" if signed else f"{found.method}, share of lower patches"
    colour_bar(figure, shown, list(every), what, 40)
    return figure


def sheet_figure(found: Map, slide: Slide) -> Figure:
    """Returns the patches with the highest scores, and below them those with the lowest."""
    assert found.places is not None
    order = found.scores.argsort(kind="stable")[::-1]
    count = min(ENDS, len(order))
    figure = Figure((1.5 * count, 3.9), 150, layout="constrained")
    ends = {"highest scores": order[:count], "lowest scores": order[-count:]}
    for axes, (title, patches) in zip(figure.subplots(2, 1), ends.items(), strict=True):
        row = np.full((PIXELS, count * (PIXELS + GAP) - GAP, 3), 255, np.uint8)
        for i, n in enumerate(patches):
            left = i * (PIXELS + GAP)
            x, y = found.places.corners[n]
            row[:, left : left + PIXELS] = slide.patch(x, y, found.places.side, PIXELS)
            axes.text(left, PIXELS + GAP, f"{found.scores[n]:.3g}", va="top", size=9)
        axes.imshow(row)
        axes.set_title(title, loc="left", size=11)
        axes.set_axis_off()
    return figure


def flipping_figure(flippings: Mapping[str, Sequence[Flipping]]) -> Figure:
    """Returns the mean curves of every method over all bags, most and least important first."""
    figure = Figure((10.5, 4.6), 150, layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    titles = ("most important patches gone first", "least important gone first")
    at = np.linspace(0, 1, 41)
    for axes, title, most in zip(both, titles, (True, False), strict=True):
        grid_lines(axes)
        for i, (name, found) in enumerate(flippings.items()):
            curves = [
                np.interp(at, x.removed, x.most_first if most else x.least_first) for x in found
            ]
            colour = GREY if name == "random" else COLOURS[i % len(COLOURS)]
            style = "--" if name == "random" else "-"
            axes.plot(at, np.mean(curves, 0), style, color=colour, label=name)
        label(axes, title, "share of patches gone", "probability" if most else "")
    both[1].legend(frameon=False, fontsize=10)
    return figure
