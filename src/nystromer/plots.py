"""Figures of what `diagnostics` and `bench` measure; save one with `.savefig(path)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from nystromer.diagnostics import Diagnosis, Maps, Spectrum

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.image import AxesImage
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
except ImportError as error:
    raise ImportError("Figures need matplotlib: pip install nystromer[plots].") from error

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLACK, ORANGE, BLUE, GREEN, RED = "#000000", "#e69f00", "#0072b2", "#009e73", "#d55e00"
GREY = "#6f6f6f"
METHODS = {  # its name in a figure, its colour
    "exact": ("exact", BLACK),
    "eager": ("Nyström, as written", ORANGE),
    "blocked": ("Nyström, blocked", BLUE),
    "module": ("our layer", GREEN),
    "nystrom-attention": ("nystrom-attention layer", RED),
}


class Panel(NamedTuple):
    """Lines over N: {name: (colour, [(N, y), ...])}."""

    title: str
    unit: str
    lines: dict[str, tuple[str, list[tuple[int, float]]]]


class MeasuredCase(Protocol):
    @property
    def method(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def num_landmarks(self) -> int: ...
    @property
    def backward(self) -> bool: ...


class MeasuredRow(Protocol):
    """A `nystromer.bench.Row`."""

    @property
    def case(self) -> MeasuredCase: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def peak_bytes(self) -> int | None: ...
    @property
    def device(self) -> str: ...


def maps_figure(maps: Maps) -> Figure:
    """The exact attention map, its approximation in the same colours, and their difference."""
    figure = Figure(figsize=(12.5, 5.8), dpi=150, layout="constrained")
    panels = exact_axes, near_axes, off_axes = figure.subplots(1, 3, sharey=True)
    n = maps.exact.shape[1]
    exact, near = _array(maps.exact) * n, _array(maps.approximation) * n
    norm = _weights_norm(exact)
    image = exact_axes.imshow(exact, cmap="magma", norm=norm)
    near_axes.imshow(np.maximum(near, 1e-9), cmap="magma", norm=norm)  # a few are negative
    reach = np.quantile(np.abs(near - exact), 0.99)
    off_image = off_axes.imshow(near - exact, cmap="RdBu_r", vmin=-reach, vmax=reach)
    titles = (
        "Exact attention",
        f"Nyström, {maps.inverse.shape[0]} landmarks",
        f"Difference, relative error {maps.error:.2f}",
    )
    for axes, title in zip(panels, titles, strict=True):
        label(axes, title, "key position", "query position" if axes is exact_axes else "")
    colour_bar(figure, image, [exact_axes, near_axes], "weight (1 = uniform attention)", 40)
    colour_bar(figure, off_image, off_axes, "Nyström minus exact", 19)
    return figure


def factors_figure(maps: Maps) -> Figure:
    """The three tables whose product is the approximate map: tall, small, wide."""
    figure = Figure(figsize=(12.5, 5.2), dpi=150, layout="constrained")
    axes_1, axes_2, axes_3 = figure.subplots(1, 3, width_ratios=(1, 1.7, 3))
    (n_q, m), n_k = maps.kernel_1.shape, maps.kernel_3.shape[1]
    kernel_1, inverse, kernel_3 = map(_array, (maps.kernel_1, maps.inverse, maps.kernel_3))
    reach = np.quantile(np.abs(inverse), 0.99)
    weights = {"cmap": "magma", "aspect": "auto"}
    image_1 = axes_1.imshow(kernel_1 * m, norm=_weights_norm(kernel_1 * m), **weights)
    image_2 = axes_2.imshow(inverse, aspect="auto", cmap="RdBu_r", vmin=-reach, vmax=reach)
    image_3 = axes_3.imshow(kernel_3 * n_k, norm=_weights_norm(kernel_3 * n_k), **weights)
    label(axes_1, f"kernel_1 [{n_q} × {m}]", "landmark", "query position")
    label(axes_2, f"·  kernel_2⁺ [{m} × {m}]", "landmark", "landmark")
    label(axes_3, f"·  kernel_3 [{m} × {n_k}]", "key position", "landmark")
    colour_bar(figure, image_1, axes_1, "weight (1 = uniform)", 12)
    colour_bar(figure, image_2, axes_2, "entry of the inverse", 20)
    colour_bar(figure, image_3, axes_3, "weight (1 = uniform)", 35)
    return figure


def error_figure(diagnoses: Sequence[Diagnosis], spectrum: Spectrum | None = None) -> Figure:
    """Relative error against the number of landmarks; with the spectrum, the least possible one."""
    figure, axes = _plot()
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
    _plain_ticks(axes, ms)
    _name_lines(
        figure, axes, [(ms[-1], errors[-1], name, colour) for name, colour, _, errors in lines]
    )
    label(axes, "Error of Nyström attention", "landmarks M", "relative error to exact attention")
    return figure


def residual_figure(diagnoses: Sequence[Diagnosis], pinv_iterations: int = 6) -> Figure:
    """How far the inverse is from a true one after every step, for every number of landmarks."""
    figure, axes = _plot()
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
    """Singular values of the attention map of every head: how few directions it has."""
    figure, axes = _plot()
    values = _array(spectrum.singular_values)
    index = np.arange(1, values.shape[1] + 1)
    for head in values:
        axes.plot(index, head, color=BLUE, linewidth=1.2, alpha=0.7)
    axes.set(xscale="log", yscale="log", ylim=(max(values.max() * 1e-5, values.min()), None))
    _plain_ticks(axes, [10**i for i in range(len(str(len(index))))])
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


def scaling_figure(rows: Sequence[MeasuredRow]) -> Figure:
    """Time and peak memory against N, a line a method; rows without a number are left out."""
    return lengths_figure(scaling_panels(rows))


def scaling_panels(rows: Sequence[MeasuredRow]) -> list[Panel]:
    work = "forward and backward" if any(row.case.backward for row in rows) else "forward"
    time = Panel(f"Time, {work}", "seconds", {})
    memory = Panel(f"Memory on top of the inputs, {work}", "MiB", {})
    for row in rows:
        name, colour = METHODS[row.case.method]
        for panel, y in (time, row.seconds), (memory, (row.peak_bytes or 0) / 2**20):
            if y:
                panel.lines.setdefault(name, (colour, []))[1].append((row.case.n, y))
    return [time, memory]


def lengths_figure(panels: Sequence[Panel], share_y: bool = False) -> Figure:
    """What grows with N, a panel a quantity, on logarithmic axes; lines are named at their end."""
    figure = Figure(figsize=(12.5, 4.8), dpi=150, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=share_y), panels, strict=True):
        for colour, points in panel.lines.values():
            axes.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, clip_on=False)
        axes.set(xscale="log", yscale="log")
        axes.margins(y=0.08)  # room for a name
        _plain_ticks(axes, sorted({n for _, points in panel.lines.values() for n, _ in points}))
        label(axes, panel.title, "tokens N", panel.unit)
        grid(axes)
        if share_y:
            axes.label_outer()
    for axes, panel in zip(figure.axes, panels, strict=True):  # once all limits are known
        ends = [(*points[-1], name, colour) for name, (colour, points) in panel.lines.items()]
        _name_lines(figure, axes, ends)
    return figure


def _plot() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    grid(axes)
    return figure, axes


def grid(axes: Axes) -> None:
    axes.grid(which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", size=13)
    axes.set_xlabel(x_label, size=11)
    axes.set_ylabel(y_label, size=11)


def _name_lines(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names lines, (x, y, name, colour), at their right end.

    Where others go on: above the end of the highest line, under that of any other.
    """
    low, high = np.log(axes.get_ylim())
    height = 0.8 * figure.get_figheight() * 72  # of the axes, about, in points
    last = max((x for x, *_ in ends), default=0)
    free = -np.inf  # names at the right edge stand 14 points apart, from below
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


def _plain_ticks(axes: Axes, ticks: Sequence[int]) -> None:
    """Lengths as people write them, 65,536, and at most six of them."""
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: -len(ticks) // 6 or 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))


def _weights_norm(weights: np.ndarray) -> LogNorm:
    top = np.quantile(weights, 0.999)
    return LogNorm(top / 1000, top)


def colour_bar(
    figure: FigureBase, image: AxesImage, axes: Axes | list[Axes], label: str, aspect: float
) -> None:
    bar = figure.colorbar(image, ax=axes, location="bottom", extend="both", aspect=aspect)
    bar.set_label(label, size=11)
    bar.outline.set_visible(False)
    bar.formatter = FuncFormatter(lambda x, _: f"{x:g}")
    bar.minorticks_off()


def _array(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()
