"""Tables and figures of the attention operation, from the committed rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from benchmarks.attention import growth, table1
from benchmarks.attention.others import ESTIMATE, OTHERS, SAME
from benchmarks.common import DIRECTIONS, RESULTS, Row, Rows, markdown, results
from nystromer import bench, plots
from nystromer.plots import Panel


def cpu_table(chosen: Callable[[Row], bool] = lambda row: True) -> str:
    """Shows forward and forward + backward of one case side by side."""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in results("cpu"):
        if row["direction"] not in DIRECTIONS or not chosen(row):
            continue
        case = (row["against"], f"{int(row['n']):,}", row["num_landmarks"], row["dtype"])
        cases.setdefault(case, {})[row["direction"]] = time_cell(row)
    lines = [[*case, *(found.get(d, "") for d in DIRECTIONS)] for case, found in cases.items()]
    return markdown(["against", "N", "M", "dtype", *DIRECTIONS], lines)


def cpu_short_table() -> str:
    """Shows float32 at the longest length of each of the others, up to 16,384 tokens."""
    longest: dict[str, int] = {}
    for row in results("cpu"):
        if row["dtype"] == "float32" and int(row["n"]) <= 16_384:
            longest[row["against"]] = max(int(row["n"]), longest.get(row["against"], 0))
    return cpu_table(
        lambda row: row["dtype"] == "float32" and int(row["n"]) == longest[row["against"]]
    )


def busy_table() -> str:
    """Shows how much slower ours and exact attention get beside a process that takes all cores."""
    idle = {(row["against"], row["n"], row["direction"]): row for row in results("cpu")}
    lines = []
    for row in results("cpu_busy"):
        alone = idle[row["against"], row["n"], row["direction"]]
        cells = []
        for name in ("ours_ms", "other_ms"):
            before, beside = float(alone[name]), float(row[name])
            cells.append(f"{before:,.1f} → {beside:,.1f} ms, **{beside / before:.1f}×**")
        lines.append([f"{int(row['n']):,}", row["direction"], *cells[:1], row["against"], cells[1]])
        lines[-1].append(factor(float(row["ratio"])))
    header = ["N", "", "ours, idle → busy", "against", "idle → busy", "busy: ours is faster by"]
    return markdown(header, lines)


def peak_table() -> str:
    """Shows how much of the speed of torch's large product a whole call reaches."""
    lines = [
        [
            f"{int(row['n']):,}",
            row["cores"],
            f"{float(row['ms']):.1f} ms",
            f"{float(row['gflops']):.0f} GFLOP/s",
            f"{float(row['mm_gflops']):.0f} GFLOP/s",
            f"{float(row['share']):.0%}",
        ]
        for row in results("peak")
    ]
    return markdown(["N", "cores", "a call", "its products", "torch.mm", "share"], lines)


def time_cell(row: Row) -> str:
    """Shows how many times faster ours is, and the times of the other and ours."""
    other, ours, ratio = (float(row[name]) for name in ("other_ms", "ours_ms", "ratio"))
    return f"**{factor(ratio)}** ({other:,.0f} / {ours:,.0f} ms)"


def factor(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"


def differences_table() -> str:
    lines = [[r["implementation"], r["what"], r["figure"]] for r in results("differences")]
    return markdown(["implementation", "what", "measured"], lines)


def everyone_table(cell: Callable[[Row], str]) -> str:
    """Shows a line for each case and a column for each of the others."""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in results("everyone"):
        case = (f"{int(row['n']):,}", row["num_landmarks"], row["dtype"], row["direction"])
        cases.setdefault(case, {})[row["against"]] = marked(row) or cell(row)
    lines = [[*case, *(found.get(name, "–") for name in OTHERS)] for case, found in cases.items()]
    return markdown(["N", "M", "dtype", "", *OTHERS], lines)


def marked(row: Row) -> str:
    """Returns what stands in place of a number: "fails", "disagrees", or nothing if it has one."""
    return next((word for word in ("fails", "disagrees") if word in row["note"]), "")


def memory_ratio(row: Row) -> str:
    return factor(float(row["other_mib"]) / float(row["ours_mib"]))


def everyone_notes_table() -> str:
    """Shows why there is no number, once for all lengths."""
    notes: dict[tuple[str, ...], Rows] = {}
    for row in results("everyone"):
        if row["note"]:
            case = (row["against"], row["dtype"], row["direction"], marked(row))
            notes.setdefault(case, []).append(row)
    lines = []
    for (against, dtype, direction, _), found in notes.items():
        lengths = ", ".join(dict.fromkeys(f"{int(row['n']):,}" for row in found))
        lines.append([against, dtype, direction, lengths, found[0]["note"]])
    return markdown(["against", "dtype", "", "N", "at the first of them"], lines)


def everyone_short_table() -> str:
    """Shows everyone at N = 16,384, M = 64, float32."""
    chosen: dict[str, dict[str, Row]] = {}
    for row in results("everyone"):
        if (row["n"], row["num_landmarks"], row["dtype"]) == ("16384", "64", "float32"):
            chosen.setdefault(row["against"], {})[row["direction"]] = row
    lines = []
    for name in filter(chosen.__contains__, OTHERS):
        found = [chosen[name].get(direction) for direction in DIRECTIONS]
        times, memories = (
            [marked(row) or cell(row) if row else "–" for row in found]
            for cell in (time_cell, memory_ratio)
        )
        error = error_cell(next(row for row in found if row))
        lines.append([name, OTHERS[name][0], *times, " / ".join(memories), error])
    header = ["against", "computes", *DIRECTIONS, "memory", "its error (ours) to exact attention"]
    return markdown(header, lines)


def error_cell(row: Row) -> str:
    """Shows how far the other and ours are from exact attention, where that is its aim."""
    if not row["other_error"]:
        return "as ours" if OTHERS[row["against"]][0] == SAME else "not comparable"
    theirs = row["other_error"] if OTHERS[row["against"]][0] == ESTIMATE else "0"
    return f"{float(theirs):.2f} ({float(row['ours_error']):.2f})"


def everyone_figure() -> Figure:
    """Draws the forward time of float32 with M = 64, ours in blue in both panels."""
    colours = dict(zip(OTHERS, [plots.ORANGE, plots.RED, plots.GREEN, plots.BLACK], strict=False))
    colours.update(
        zip(list(OTHERS)[4:], [plots.ORANGE, plots.GREEN, plots.RED, plots.PURPLE], strict=True)
    )
    panels = []
    for title, same in (("Nyström attention by others", True), ("Other attentions", False)):
        names = [name for name in OTHERS if (OTHERS[name][0] == SAME) == same]
        lines: dict[str, tuple[str, list[tuple[int, float]]]] = {}
        own: dict[int, list[float]] = {}
        for row in results("everyone"):
            case = (row["num_landmarks"], row["dtype"], row["direction"])
            if row["against"] in names and row["ratio"] and case == ("64", "float32", "forward"):
                n, name = int(row["n"]), row["against"]
                line = lines.setdefault(name, (colours[name], []))
                line[1].append((n, float(row["other_ms"])))
                own.setdefault(n, []).append(float(row["ours_ms"]))
        points = [(n, statistics.median(times)) for n, times in own.items()]
        panels.append(Panel(title, "milliseconds", {**lines, "ours": (plots.BLUE, points)}))
    return plots.lengths_figure(panels, share_y=True)


def table1_table() -> str:
    """Shows ours, its saving against both kinds of exact attention, and the paper's saving."""
    lines = []
    for row in results("table1"):
        n, m = int(row["n"]), int(row["num_landmarks"])
        exact, paper = (table1.PAPER[key][table1.LENGTHS.index(n)] for key in (None, m))
        lines.append([f"{n:,}", str(m)])
        for unit, name, i in (("ms", "ms", 1), ("MiB", "mib", 0)):
            mine = float(row[f"ours_{name}"])
            if name == "ms":
                ratios = [float(row[f"{other}_ratio"]) for other in ("naive", "sdpa")]
            else:
                ratios = [float(row[f"{other}_mib"]) / mine for other in ("naive", "sdpa")]
            saving = [factor(ratio) for ratio in (exact[i] / paper[i], *ratios)]
            lines[-1] += [f"{mine:,.0f} {unit}", *saving]
    per = ["paper", "against naive", "against SDPA"]
    return markdown(["N", "M", "time", *per, "memory", *per], lines)


def growth_table() -> str:
    """Shows time and memory of every method at every length, or why there is no number."""
    measured = bench.read_csv(RESULTS / "growth.csv")
    methods = list(dict.fromkeys(r.case.method for r in measured))
    cells = {(r.case.backward, r.case.n, r.case.method): r for r in measured}

    def cell(row: bench.Row) -> str:
        if row.seconds is None or row.peak_bytes is None:
            return row.note
        error = f", error {row.error:.2f}" if row.error and row.case.method != "exact" else ""
        return f"{1e3 * row.seconds:,.1f} ms, {row.peak_bytes / 2**20:,.0f} MiB{error}"

    lines = [
        [f"{n:,}", DIRECTIONS[backward], *(cell(cells[backward, n, m]) for m in methods)]
        for backward, n in dict.fromkeys((r.case.backward, r.case.n) for r in measured)
    ]
    return markdown(["N", "", *methods], lines)


def growth_figure() -> Figure:
    return plots.lengths_figure([with_exponents(panel) for panel in growth_panels()])


def growth_panels(backward: bool = False) -> list[Panel]:
    """Returns the lines of time and of memory by length."""
    measured = bench.read_csv(RESULTS / "growth.csv")
    return plots.scaling_panels([r for r in measured if r.case.backward == backward])


def exponents_table() -> str:
    """Shows the exponents fitted from 4,096 tokens on, and those between the two longest."""
    lines = []
    for backward in (False, True):
        time, memory = (panel.lines for panel in growth_panels(backward))
        for name in time:
            points = time[name][1], memory[name][1]
            cells = [cell for p in points for cell in (fitted(p), f"{growth.last_exponent(p):.2f}")]
            lines.append([name, DIRECTIONS[backward], f"{points[0][-1][0]:,}", *cells])
    header = ["", "", "N up to", "time", "last two", "memory", "last two"]
    return markdown(header, lines)


def fitted(points: list[tuple[int, float]]) -> str:
    fit = growth.exponent(points)
    return f"{fit.value:.2f} ± {fit.margin:.2f}" if fit else "–"


def with_exponents(panel: Panel) -> Panel:
    """Returns the panel with the fitted growth beside every name: exact, N^2.00."""
    lines = {}
    for name, (colour, points) in panel.lines.items():
        fit = growth.exponent(points)
        lines[f"{name}, $N^{{{fit.value:.2f}}}$" if fit else name] = (colour, points)
    return panel._replace(lines=lines)


TABLES = {
    "peak": peak_table,
    "cpu": cpu_table,
    "cpu-short": cpu_short_table,
    "busy": busy_table,
    "differences": differences_table,
    "everyone": partial(everyone_table, lambda row: factor(float(row["ratio"]))),
    "everyone-memory": partial(everyone_table, memory_ratio),
    "everyone-notes": everyone_notes_table,
    "everyone-short": everyone_short_table,
    "table1": table1_table,
    "growth": growth_table,
    "exponents": exponents_table,
}
FIGURES = {"growth": growth_figure, "everyone": everyone_figure}
