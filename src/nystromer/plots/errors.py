"""Draws errors by the number of landmarks, the steps of the inverse, and singular values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from nystromer.diagnostics import Diagnosis, Spectrum
from nystromer.plots.style import (
    BLUE,
    GREY,
    RED,
    as_array,
    label,
    name_lines,
    plain_ticks,
    single_plot,
)


def error_figure(diagnoses: Sequence[Diagnosis], spectrum: Spectrum | None = None) -> Figure:
    """Draws the relative error against the number of landmarks.

    With the spectrum of the attention map, also the least error that is possible.
    """
    figure, axes = single_plot()
    ms = [d.num_landmarks for d in diagnoses]
    lines = [("output", BLUE, "o-", [d.output_error for d in diagnoses])]
    of_map = [d.map_error for d in diagnoses if d.map_error is not None]
    if len(of_map) == len(ms):
        lines.append(("attention map", RED, "o-", of_map))
    if spectrum is not None:
        best = [spectrum.best_error(m) for m in ms]
        lines.append(("best map of rank M", GREY, "--", best))
    for _, colour, style, errors in lines:
        axes.plot(ms, errors, style, color=colour, linewidth=2)
    axes.set(xscale="log", yscale="log")
    plain_ticks(axes, ms)
    name_lines(
        figure, axes, [(ms[-1], errors[-1], name, colour) for name, colour, _, errors in lines]
    )
    label(axes, "Error of Nyström attention", "landmarks M", "relative error to exact attention")
    return figure


def residual_figure(diagnoses: Sequence[Diagnosis], pinv_iterations: int = 6) -> Figure:
    """Draws how far the inverse is from a true one after every step, a line for each M."""
    figure, axes = single_plot()
    followed = [(d.num_landmarks, d.inverse) for d in diagnoses if d.inverse is not None]
    followed.sort(key=lambda x: -x[0])
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(followed)))
    for (m, inverse), shade in zip(followed, shades, strict=True):
        axes.plot(inverse.residuals, "o-", color=shade, linewidth=2, ms=4, label=f"M = {m}")
    if followed:
        axes.legend(frameon=False, fontsize=11, labelcolor="linecolor")
    axes.axvline(pinv_iterations, color=GREY, linewidth=1, linestyle="--")
    axes.text(pinv_iterations + 0.2, 0.96, f"{pinv_iterations} steps", color=GREY, size=11)
    axes.set_ylim(0, 1.02)
    label(
        axes,
        "What the inverse of kernel_2 still leaves out",
        "step j",
        "‖A Z$_j$ − A A⁺‖ / ‖A A⁺‖, worst head",
    )
    return figure


def spectrum_figure(spectrum: Spectrum, num_landmarks: int | None = None) -> Figure:
    """Draws the singular values of the attention map of every head: how few directions it has.

    With num_landmarks, a line says what any map of that rank misses.
    """
    figure, axes = single_plot()
    values = as_array(spectrum.singular_values)
    index = np.arange(1, values.shape[1] + 1)
    for head in values:
        axes.plot(index, head, color=BLUE, linewidth=1.2, alpha=0.7)
    axes.set(xscale="log", yscale="log", ylim=(max(values.max() * 1e-5, values.min()), None))
    plain_ticks(axes, [10**i for i in range(len(str(len(index))))])
    if num_landmarks is not None:
        axes.axvline(num_landmarks, color=GREY, linewidth=1, linestyle="--")
        text = f"M = {num_landmarks}: any map of this rank\nmisses {{:.0%}} or more"
        axes.annotate(
            text.format(spectrum.best_error(num_landmarks)),
            (num_landmarks, values.max()),
            (6, 0),
            textcoords="offset points",
            color=GREY,
            size=11,
            va="top",
        )
    label(axes, f"Spectrum of the attention map, {len(values)} heads", "index", "singular value")
    return figure
