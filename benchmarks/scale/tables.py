"""Tables and pictures of one sequence in several processes, from the committed rows."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from benchmarks.common import DIRECTIONS, markdown, results
from benchmarks.scale.simulation import table as simulation_table
from benchmarks.scale.speed import WAYS
from nystromer.plots import BLACK, BLUE, GREEN, GREY, ORANGE


def megabytes(count: str) -> str:
    return f"{int(count) / 1e6:,.1f} MB"


def exchange_table() -> str:
    """Shows the bytes of ours, of ring attention and of the all-to-all exchange."""
    lines = [
        [
            f"{int(row['tokens']):,}",
            megabytes(row["bytes"]),
            megabytes(row["ring_bytes"]),
            megabytes(row["all_to_all_bytes"]),
            row["error"],
        ]
        for row in results("scale_exchange")
    ]
    header = ["tokens", "ours", "ring attention", "all-to-all", "difference to one process"]
    return markdown(header, lines)


def speed_table() -> str:
    """Shows the times of one and two processes and the memory of each."""
    rows = {(row["direction"], row["tokens"], row["way"]): row for row in results("scale_speed")}
    lines = []
    for direction in DIRECTIONS:
        for tokens in dict.fromkeys(n for d, n, _ in rows if d == direction):
            here = [rows.get((direction, tokens, way)) for way in WAYS]
            cells = [f"{1e3 * float(x['seconds']):,.1f} ms" if x else "" for x in here]
            sizes = [f"{float(x['peak_mib']):,.0f} MiB" if x else "" for x in here[1:]]
            lines.append([f"{int(tokens):,}", direction, *cells, *sizes])
    header = ["tokens", "", *WAYS, "memory of one process", "memory of each of two"]
    return markdown(header, lines)


def million_table() -> str:
    """Shows what a million bytes take."""
    jobs = {"encode": "encoded", "train": "one update"}
    lines = [
        [
            f"{int(row['tokens']):,}",
            jobs[row["job"]],
            f"{row['layers']} layers of {row['width']}",
            f"{float(row['seconds']):.0f} s",
            f"{float(row['peak_gib']):.1f} GiB",
        ]
        for row in results("scale_million")
    ]
    return markdown(["bytes", "", "model", "time", "most memory of the process"], lines)


def far_table() -> str:
    """Shows how often the sign in the other half was named."""
    lines = [[row["way"], f"{float(row['accuracy']):.3f}"] for row in results("scale_far")]
    return markdown(["read", "accuracy"], lines)


def idea_figure() -> Figure:
    """Draws three processes, what each computes of its part, and what they exchange."""
    figure = Figure(figsize=(10, 5.2), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 5.2)
    axes.axis("off")
    for i in range(3):
        left = 0.3 + 3.2 * i
        axes.text(left + 1.5, 4.95, f"process {i}", ha="center", va="center", size=13)
        box(axes, left, 4.25, 3, 0.45, "its part of the tokens: q, k, v", "#e4e4e4", BLACK)
        for y, text in ((3.15, "sums of its segments"), (1.65, "landmarks read its keys")):
            box(axes, left + 0.2, y, 2.6, 0.42, text, "#ffffff", BLACK)
        box(axes, left + 0.2, 0.15, 2.6, 0.42, "its queries read the landmarks", "#ffffff", BLACK)
        for start, stop in ((4.25, 3.57), (3.15, 2.84), (2.42, 2.07), (1.65, 1.34), (0.92, 0.57)):
            arrow(axes, (left + 1.5, start), (left + 1.5, stop), GREY)
        if i < 2:
            middle = left + 3.1
            arrow(axes, (middle - 0.3, 4.47), (middle + 0.3, 4.47), ORANGE, "<->")
            axes.text(middle, 4.02, "K // 2 values", color=ORANGE, ha="center", size=10)
    for y, colour, text in (
        (2.42, BLUE, r"all-reduce: the landmarks $\tilde{Q}$, $\tilde{K}$, 2 H M D numbers"),
        (0.92, GREEN, r"all-reduce: what the landmarks read, H M (D + 2) numbers"),
    ):
        box(axes, 0.3, y, 9.4, 0.42, text, colour, "#ffffff")
    return figure


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, fill: str, ink: str
) -> None:
    """Draws a box with a line of text in it."""
    edge = GREY if fill == "#ffffff" else fill
    axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge))
    axes.text(x + width / 2, y + height / 2, text, color=ink, ha="center", va="center", size=11)


def arrow(
    axes: Axes, start: tuple[float, float], stop: tuple[float, float], ink: str, style: str = "->"
) -> None:
    """Draws an arrow."""
    patch = FancyArrowPatch(start, stop, arrowstyle=style, color=ink, mutation_scale=12, zorder=3)
    axes.add_patch(patch)


TABLES = {
    "scale exchange": exchange_table,
    "scale speed": speed_table,
    "scale million": million_table,
    "scale far": far_table,
    "scale simulation": simulation_table,
}
FIGURES = {"scale": idea_figure}
