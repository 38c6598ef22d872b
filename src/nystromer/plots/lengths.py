"""Draws what grows with the length of the sequence: time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from matplotlib.figure import Figure

from nystromer.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    grid,
    label,
    name_lines,
    plain_ticks,
)

METHODS = {  # its name in a figure, its colour
    "exact": ("exact", BLACK),
    "eager": ("Nyström, as written", ORANGE),
    "blocked": ("Nyström, blocked", BLUE),
    "native": ("Nyström, native", PURPLE),
    "module": ("our layer", GREEN),
    "nystrom-attention": ("nystrom-attention layer", RED),
}


class Panel(NamedTuple):
    """One plot over the length N; its lines are {name: (colour, [(N, y), ...])}."""

    title: str
    unit: str
    lines: dict[str, tuple[str, list[tuple[int, float]]]]


class MeasuredCase(Protocol):
    """What a figure reads of a `nystromer.bench.Case`."""

    @property
    def method(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def num_landmarks(self) -> int: ...
    @property
    def backward(self) -> bool: ...


class MeasuredRow(Protocol):
    """What a figure reads of a `nystromer.bench.Row`."""

    @property
    def case(self) -> MeasuredCase: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def peak_bytes(self) -> int | None: ...
    @property
    def device(self) -> str: ...


def scaling_figure(rows: Sequence[MeasuredRow]) -> Figure:
    """Draws time and peak memory against N, a line for each method.

    Rows without a number are left out.
    """
    return lengths_figure(scaling_panels(rows))


def scaling_panels(rows: Sequence[MeasuredRow]) -> list[Panel]:
    """Returns the plot of time and that of memory."""
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
    """Draws panels side by side on logarithmic axes, each line with its name at its end."""
    figure = Figure(figsize=(12.5, 4.8), dpi=150, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=share_y), panels, strict=True):
        for colour, points in panel.lines.values():
            axes.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, clip_on=False)
        axes.set(xscale="log", yscale="log")
        axes.margins(y=0.08)  # room for a name
        plain_ticks(axes, sorted({n for _, points in panel.lines.values() for n, _ in points}))
        label(axes, panel.title, "tokens N", panel.unit)
        grid(axes)
        if share_y:
            axes.label_outer()
    for axes, panel in zip(figure.axes, panels, strict=True):  # once all limits are known
        ends = [(*points[-1], name, colour) for name, (colour, points) in panel.lines.items()]
        name_lines(figure, axes, ends)
    return figure
