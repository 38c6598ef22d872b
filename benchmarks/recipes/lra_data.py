"""Shows what the rows of the Long Range Arena are: classes, lengths, pictures.

    python -m benchmarks recipes.lra_data [--data-dir DIR] [--cache DIR] [--rows N] [--eval-rows N]
                                          [--quick] [--output FILE]

Takes about ten minutes on one core.

ListOps and Pathfinder are generated; the other tasks are read from --data-dir. Writes
results/lra_data.csv (rows, classes and lengths of every split) and, but for --quick, the figures
lra-data.png (histograms) and pathfinder.png (samples) of docs/figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from benchmarks import common
from benchmarks.recipes.lra import GENERATED
from nystromer import plots
from nystromer.recipes.lra import pathfinder
from nystromer.recipes.lra.data import load
from nystromer.recipes.lra.tasks import TASKS
from nystromer.recipes.lra.training import token_counts

READ = ("text", "imdb-same-movie", "image")
SAMPLES = 6  # pictures of a class


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows, to see that it runs")
    parser.add_argument("--data-dir", type=Path, help="folder of the data that is read")
    parser.add_argument("--cache", type=Path, help="folder of data that is ready to train on")
    parser.add_argument("--rows", type=int, help="training rows to generate")
    parser.add_argument("--eval-rows", type=int, help="validation and test rows to generate")
    output = common.RESULTS / "lra_data.csv"
    parser.add_argument("--output", type=Path, default=output, help=f"default: {output.name}")
    arguments = parser.parse_args()
    limits = {"rows": arguments.rows, "eval_rows": arguments.eval_rows}
    limits = {"rows": 100, "eval_rows": 10} if arguments.quick else limits
    lines, train = [], {}
    for task in (*GENERATED, *(READ if arguments.data_dir else ())):
        folder = None if task in GENERATED else arguments.data_dir
        found, _ = load(task, folder, cache=arguments.cache, **limits)
        train[task] = found["train"]
        lines += [line(task, split, rows) for split, rows in found.items()]
    common.write(lines, arguments.output)
    if not arguments.quick:
        histograms(train).savefig(common.FIGURES / "lra-data.png")
        samples(train["pathfinder"]).savefig(common.FIGURES / "pathfinder.png")


def line(task: str, split: str, rows: Dataset) -> dict[str, Any]:
    """Returns the row of one split of a task."""
    counts = np.concatenate(token_counts(rows))
    shares = np.bincount(rows["labels"][:], minlength=TASKS[task].classes) / len(rows)
    return {
        "task": task,
        "split": split,
        "rows": len(rows),
        "classes": TASKS[task].classes,
        "rarest": f"{shares.min():.4f}",
        "commonest": f"{shares.max():.4f}",
        "shortest": counts.min(),
        "median": int(np.median(counts)),
        "longest": counts.max(),
        "limit": TASKS[task].max_length,
    }


def histograms(train: dict[str, Dataset]) -> Figure:
    """Draws the shares of the classes above and the lengths below, a column for each task."""
    figure = Figure(figsize=(2.6 * len(train), 4.4), dpi=120, layout="constrained")
    axes = figure.subplots(2, len(train), squeeze=False)
    for (task, rows), (above, below) in zip(train.items(), axes.T, strict=True):
        shares = np.bincount(rows["labels"][:]) / len(rows)
        above.bar(range(len(shares)), 100 * shares, color=plots.BLUE)
        above.set(title=task, xlabel="class", xticks=range(len(shares)))
        below.hist(
            np.concatenate(token_counts(rows)),
            bins=40,
            range=(0, TASKS[task].max_length),
            color=plots.ORANGE,
        )
        below.set(xlabel="tokens of a document")
        below.set_xlim(0, 1.02 * TASKS[task].max_length)
        below.axvline(TASKS[task].max_length, color=plots.GREY, ls=":")
        for part in (above, below):
            part.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("% of the training rows")
    axes[1, 0].set_ylabel("documents")
    return figure


def samples(rows: Dataset) -> Figure:
    """Draws images whose circles one path joins above, and others below."""
    figure = Figure(figsize=(1.5 * SAMPLES, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(2, SAMPLES)
    labels = np.asarray(rows["labels"][: 20 * SAMPLES])
    for row, label, title in ((axes[0], 1, "joined: 1"), (axes[1], 0, "not joined: 0")):
        for part, i in zip(row, np.nonzero(labels == label)[0], strict=False):
            pixels = rows[int(i)]["input_ids"].reshape(pathfinder.SIZE, pathfinder.SIZE)
            part.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            part.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
    return figure
