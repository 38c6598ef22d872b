"""Shows how several attentions do on the tasks of the Long Range Arena.

    python -m benchmarks recipes.lra run FOLDER [--tasks listops,image] [--attentions nystrom,exact]
                                        [--seeds 0,1] [--data-dir DIR] [--cache DIR] [--quick]
    python -m benchmarks recipes.lra gather FOLDER [--output FILE]

Takes about two hours on one core.

`run` trains what is not yet trained, one after the other, each by the command `nystromer lra` in a
folder of its own. Stopped, it goes on when given again; given twice at a time, the two share the
work. All attentions of a task get the same steps, batches, rate and rows (PLAN). `gather` writes
the metrics of all finished runs to results/lra.csv.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recipes import runs


@dataclass(frozen=True)
class Budget:
    """What every attention gets for a task; the rate was chosen on validation rows."""

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
GENERATED = ("listops", "pathfinder")
COLUMNS = (
    "task", "attention", "seed", "source", "steps", "schedule", "batch_size", "learning_rate",
    "num_landmarks", "train_rows", "test_rows", "validation_accuracy", "accuracy", "ms_per_step",
    "tokens_per_second", "peak_mib", "parameters", "data", "device", "torch",
)  # fmt: skip


def main() -> None:
    parser = runs.options(__doc__, "lra")
    for name, known in (("tasks", PLAN), ("attentions", ATTENTIONS)):
        words = {"type": lambda x: x.split(","), "default": list(known), "metavar": "NAME,NAME"}
        parser.add_argument(f"--{name}", help=f"default: {','.join(known)}", **words)
    seeds = {"type": lambda x: list(map(int, x.split(","))), "default": [0], "metavar": "0,1"}
    parser.add_argument("--seeds", help="default: 0", **seeds)
    parser.add_argument("--cache", type=Path, help="folder of data that is ready to train on")
    parser.add_argument("--quick", action="store_true", help="two steps, to see that it runs")
    arguments = parser.parse_args()
    if arguments.what == "gather":
        runs.gather(arguments, row_of, ("task", "attention", "seed"))
        return
    for seed in arguments.seeds:
        for task in arguments.tasks:
            for attention in arguments.attentions:
                output = arguments.folder / f"{task}-{attention}-{seed}"
                runs.train_once(command(task, attention, seed, arguments), output)


def command(task: str, attention: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Returns the words of `nystromer lra` for one run."""
    budget = QUICK if arguments.quick else PLAN[task]
    options = {
        "attention": attention,
        "seed": seed,
        "steps": budget.steps,
        "batch-size": budget.batch_size,
        "learning-rate": budget.learning_rate,
        "eval-rows": budget.eval_rows,
        "looks": budget.looks,
        "rows": budget.rows,
        "cache": arguments.cache,
        "data-dir": None if task in GENERATED else arguments.data_dir,
    }
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return ["lra", task, *(word for pair in given for word in pair)]


def row_of(folder: Path) -> dict[str, object]:
    """Returns the row of a finished run."""
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    found |= {f"{split}_rows": count for split, count in found["rows"].items()}
    return {name: found[name] for name in COLUMNS}
