"""Tables and the figure of the Long Range Arena, from the committed rows."""

from __future__ import annotations

import math
import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.common import Rows, markdown, results
from benchmarks.recipes.lra import ATTENTIONS
from nystromer import plots

COLOURS = dict(
    zip(ATTENTIONS, [plots.BLUE, plots.BLACK, plots.ORANGE, plots.GREEN, plots.GREY], strict=True)
)
GUESS = {"listops": 17.1, "image": 10.0}  # %, of the commonest class; in the others 50
NAMES = {
    "listops": "ListOps", "text": "Text", "retrieval": "Retrieval",
    "imdb-same-movie": "imdb-same-movie", "image": "Image", "pathfinder": "Pathfinder",
}  # fmt: skip
PUBLISHED = ("listops", "text", "retrieval", "image", "pathfinder")
PAPER = {  # Xiong et al. 2021, Table 3
    "nystrom": (37.15, 65.52, 79.56, 41.58, 70.94),
    "exact": (37.10, 65.02, 79.35, 38.20, 74.16),
    "linformer": (37.25, 55.91, 79.37, 37.84, 67.60),
    "performer": (18.80, 63.81, 78.62, 37.07, 69.87),
    "reformer": (19.05, 64.88, 78.64, 43.29, 69.36),
}
REPEAT = {  # Chen et al. 2021 (Skyformer), Table 1: M = 128, no convolution, mean of three runs
    "nystrom": (38.51, 64.83, 80.52, 41.30, 69.48),
    "exact": (38.37, 61.95, 80.69, 40.57, 65.26),
    "linformer": (37.45, 58.93, 78.19, 37.96, 60.93),
    "performer": (38.02, 64.19, 80.04, 41.43, 66.30),
    "reformer": (37.68, 62.93, 78.99, 48.87, 66.49),
}


def lra_table() -> str:
    """Shows our accuracies, then what others published."""
    rows = results("lra")
    found = []
    for attention in names_of(rows):
        mine = [of(rows, attention, task) for task in NAMES]
        means = [percent(x) for x in mine if x]
        average = f"{statistics.mean(means):.1f}" if len(means) == 5 else ""
        found.append([attention, "here", *map(accuracy_cell, mine), average])
    for whose, table in (("paper", PAPER), ("repeat", REPEAT)):
        for attention, values in table.items():
            published = dict(zip(PUBLISHED, values, strict=True))
            cells = [f"{published[task]:.2f}" if task in published else "" for task in NAMES]
            found.append([attention, whose, *cells, f"{statistics.mean(values):.2f}"])
    return markdown(["attention", "", *NAMES.values(), "average"], found)


def percent(rows: Rows) -> float:
    """Returns the mean accuracy of runs."""
    return 100 * statistics.mean(float(row["accuracy"]) for row in rows)


def accuracy_cell(rows: Rows) -> str:
    """Shows the mean over seeds, with its margin."""
    if not rows:
        return ""
    return f"{percent(rows):.1f} ± {margin(rows):.1f}"


def margin(rows: Rows) -> float:
    """Returns half the width of the 95 % interval that so few test rows leave, in percent."""
    share = percent(rows) / 100
    return 196 * math.sqrt(share * (1 - share) / int(rows[0]["test_rows"]))


def names_of(rows: Rows) -> list[str]:
    """Returns the attentions, in the order of `ATTENTIONS`, then any others."""
    found = {row["attention"] for row in rows}
    return [name for name in ATTENTIONS if name in found] + sorted(found.difference(ATTENTIONS))


def cost_table() -> str:
    """Shows time and memory of a step by attention and task, and the speed-up over exact."""
    rows, found = results("lra"), []
    for attention in names_of(rows):
        line = [attention]
        for task in NAMES:
            mine, exact = (of(rows, name, task) for name in (attention, "exact"))
            line.append(cost_cell(mine, exact) if mine else "")
        found.append(line)
    return markdown(["attention", *NAMES.values()], found)


def of(rows: Rows, attention: str, task: str) -> Rows:
    """Returns the rows of one attention in one task."""
    return [row for row in rows if (row["attention"], row["task"]) == (attention, task)]


def cost_cell(rows: Rows, exact: Rows) -> str:
    ms, memory = (mean(rows, name) for name in ("ms_per_step", "peak_mib"))
    saving = f" ({mean(exact, 'ms_per_step') / ms:.1f}×)" if exact else ""
    return f"{ms:,.0f} ms{saving}, {memory:,.0f} MiB"


def mean(rows: Rows, name: str) -> float:
    found = [float(row[name]) for row in rows if row[name]]
    return statistics.mean(found) if found else math.nan


def budget_table() -> str:
    """Shows what every run of a task got."""
    found = {}
    for row in sorted(results("lra"), key=lambda row: list(NAMES).index(row["task"])):
        part = f"{100 * float(row['schedule']):.2g} %"
        counts = [f"{int(row[name]):,}" for name in ("steps", "batch_size")]
        tested = [f"{int(row[name]):,}" for name in ("train_rows", "test_rows")]
        cells = [NAMES[row["task"]], *counts, part, row["learning_rate"], *tested]
        found[row["task"]] = cells
    header = ["task", "steps", "batch", "of the schedule", "rate", "rows", "tested on"]
    return markdown(header, found.values())


def figure() -> Figure:
    """Draws accuracy against the time of a step, and a line for guessing, a panel for each task."""
    rows = results("lra")
    tasks = [task for task in NAMES if any(row["task"] == task for row in rows)]
    result = Figure(figsize=(2.5 * len(tasks) + 1.5, 3), dpi=120, layout="constrained")
    for i, task in enumerate(tasks):
        axes = result.add_subplot(1, len(tasks), i + 1)
        for name in names_of(rows):
            if mine := of(rows, name, task):
                x, y = mean(mine, "ms_per_step"), percent(mine)
                colour = COLOURS.get(name, plots.RED)
                axes.errorbar(x, y, margin(mine), fmt="o", color=colour, label=name, lw=1)
        guess = GUESS.get(task, 50.0)
        axes.axhline(guess, color=plots.GREY, ls=":", lw=1)
        axes.set(title=NAMES[task], xlabel="ms a step", xscale="log")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, guess - 5), max(high, guess + 15))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    result.axes[0].set_ylabel("test accuracy, %")
    handles = result.axes[0].get_legend_handles_labels()
    result.legend(*handles, loc="outside right", frameon=False)
    return result


TABLES = {"lra": lra_table, "lra-cost": cost_table, "lra-budget": budget_table}
FIGURES = {"lra": figure}
