"""Every task of the Long Range Arena with several attentions, for a part of the schedule.

    python -m benchmarks recipes.lra run FOLDER [--tasks listops,image] [--attentions nystrom,exact]
                                        [--seeds 0,1] [--data-dir DIR] [--cache DIR] [--quick]
    python -m benchmarks recipes.lra gather FOLDER [--output FILE]

`run` trains what is not yet trained, one after the other, each by the command `nystromer lra` in a
folder of its own. Stopped, it goes on when given again; given twice at a time, the two share the
work. All attentions of a task get the same steps, batches, rate and rows (PLAN). `gather` writes
the metrics of all finished runs to results/lra.csv.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks import common
from nystromer import plots

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Budget:
    """What a task gets; the rate was chosen on validation rows, the same for all attentions."""

    steps: int
    batch_size: int
    learning_rate: float
    eval_rows: int
    looks: int = 4
    rows: int | None = None  # of a generated set; no more are made


PLAN = {
    "listops": Budget(600, 32, 2e-3, 1000),
    "image": Budget(600, 32, 2e-3, 1000),
    "text": Budget(500, 32, 2e-3, 1000),
    "pathfinder": Budget(500, 32, 2e-3, 1000, looks=2, rows=20_000),
    "imdb-same-movie": Budget(20, 32, 2e-3, 200, looks=1),
}
QUICK = Budget(2, 2, 1e-3, 4, looks=1, rows=20)
ATTENTIONS = ("nystrom", "exact", "linformer", "linear", "none")
COLOURS = dict(
    zip(ATTENTIONS, [plots.BLUE, plots.BLACK, plots.ORANGE, plots.GREEN, plots.GREY], strict=True)
)
GENERATED = ("listops", "pathfinder")
GUESS = {"listops": 17.1, "image": 10.0}  # %, of the commonest class; in the others 50
COLUMNS = (
    "task", "attention", "seed", "source", "steps", "schedule", "batch_size", "learning_rate",
    "num_landmarks", "train_rows", "test_rows", "validation_accuracy", "accuracy", "ms_per_step",
    "tokens_per_second", "peak_mib", "parameters", "data", "device", "torch",
)  # fmt: skip

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "gather"])
    parser.add_argument("folder", type=Path)
    for name, known in (("tasks", PLAN), ("attentions", ATTENTIONS)):
        parser.add_argument(f"--{name}", type=lambda x: x.split(","), default=list(known))
    parser.add_argument("--seeds", type=lambda x: list(map(int, x.split(","))), default=[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--quick", action="store_true", help="two steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=common.RESULTS / "lra.csv")
    arguments = parser.parse_args()
    if arguments.what == "gather":
        common.write(gather(arguments.folder, common.read(arguments.output)), arguments.output)
        return
    for seed in arguments.seeds:
        for task in arguments.tasks:
            for attention in arguments.attentions:
                run(task, attention, seed, arguments)


def run(task: str, attention: str, seed: int, arguments: argparse.Namespace) -> None:
    """Trains it unless it is trained or another process does."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    output = arguments.folder / f"{task}-{attention}-{seed}"
    with common.locked(output.with_suffix(".lock")) as mine:
        if mine and not (output / "metrics.json").exists():
            words = command(task, attention, seed, output, arguments)
            print(*words[3:], flush=True)
            subprocess.run(words, check=True)


def command(
    task: str, attention: str, seed: int, output: Path, arguments: argparse.Namespace
) -> list[str]:
    budget = QUICK if arguments.quick else PLAN[task]
    options = {
        "attention": attention,
        "seed": seed,
        "output": output,
        "steps": budget.steps,
        "batch-size": budget.batch_size,
        "learning-rate": budget.learning_rate,
        "eval-rows": budget.eval_rows,
        "looks": budget.looks,
        "rows": budget.rows,
        "cache": arguments.cache,
        "data-dir": None if task in GENERATED else arguments.data_dir,
    }
    words = [
        sys.executable,
        "-c",
        "from nystromer.cli import main; main()",
        "lra",
        task,
        "--resume",
    ]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return words


def gather(folder: Path, known: Rows) -> Rows:
    """The known rows with those of the folder's finished runs in their place or after them."""
    rows = {key(row): row for row in known}
    for path in sorted(folder.glob("*/metrics.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        found |= {f"{split}_rows": count for split, count in found["rows"].items()}
        row = {name: common.text(found[name]) for name in COLUMNS}
        rows[key(row)] = row
    return list(rows.values())


def key(row: dict[str, str]) -> tuple[str, ...]:
    return row["task"], row["attention"], row["seed"]


def lines(rows: Rows) -> list[list[str]]:
    """Of the table of accuracies: ours, then what others published."""
    found = []
    for attention in names_of(rows):
        mine = {
            task: [row for row in rows if (row["attention"], row["task"]) == (attention, task)]
            for task in NAMES
        }
        means = [percent(x) for x in mine.values() if x]
        average = f"{statistics.mean(means):.1f}" if len(means) == 5 else ""
        found.append([attention, "here", *map(accuracy_cell, mine.values()), average])
    for whose, table in (("paper", PAPER), ("repeat", REPEAT)):
        for attention, values in table.items():
            published = dict(zip(PUBLISHED, values, strict=True))
            cells = [f"{published[task]:.2f}" if task in published else "" for task in NAMES]
            found.append([attention, whose, *cells, f"{statistics.mean(values):.2f}"])
    return found


def percent(rows: Rows) -> float:
    return 100 * statistics.mean(float(row["accuracy"]) for row in rows)


def accuracy_cell(rows: Rows) -> str:
    """Mean over seeds, with its margin."""
    if not rows:
        return ""
    return f"{percent(rows):.1f} ± {margin(rows):.1f}"


def margin(rows: Rows) -> float:
    """Half the width of the 95 % interval that so few test rows leave, in percent."""
    share = percent(rows) / 100
    return 196 * math.sqrt(share * (1 - share) / int(rows[0]["test_rows"]))


def names_of(rows: Rows) -> list[str]:
    """The attentions, in the order of `ATTENTIONS`, then any others."""
    found = {row["attention"] for row in rows}
    return [name for name in ATTENTIONS if name in found] + sorted(found.difference(ATTENTIONS))


def cost_lines(rows: Rows) -> list[list[str]]:
    """Time of a step and memory by attention and task, and the saving against exact attention."""
    found = []
    for attention in names_of(rows):
        line = [attention]
        for task in NAMES:
            mine, exact = (of(rows, name, task) for name in (attention, "exact"))
            line.append(cost_cell(mine, exact) if mine else "")
        found.append(line)
    return found


def of(rows: Rows, attention: str, task: str) -> Rows:
    return [row for row in rows if (row["attention"], row["task"]) == (attention, task)]


def cost_cell(rows: Rows, exact: Rows) -> str:
    ms, memory = (mean(rows, name) for name in ("ms_per_step", "peak_mib"))
    saving = f" ({mean(exact, 'ms_per_step') / ms:.1f}×)" if exact else ""
    return f"{ms:,.0f} ms{saving}, {memory:,.0f} MiB"


def mean(rows: Rows, name: str) -> float:
    found = [float(row[name]) for row in rows if row[name]]
    return statistics.mean(found) if found else math.nan


def budget_lines(rows: Rows) -> list[list[str]]:
    """What every run of a task got."""
    found = {}
    for row in sorted(rows, key=lambda row: list(NAMES).index(row["task"])):
        part = f"{100 * float(row['schedule']):.2g} %"
        counts = [f"{int(row[name]):,}" for name in ("steps", "batch_size")]
        tested = [f"{int(row[name]):,}" for name in ("train_rows", "test_rows")]
        cells = [NAMES[row["task"]], *counts, part, row["learning_rate"], *tested]
        found[row["task"]] = cells
    return list(found.values())


def figure(rows: Rows) -> Figure:
    """Accuracy against time of a step, a panel a task, the commonest class as a line."""
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
    if tasks:
        result.axes[0].set_ylabel("test accuracy, %")
        result.legend(
            *result.axes[0].get_legend_handles_labels(), loc="outside right", frameon=False
        )
    return result
