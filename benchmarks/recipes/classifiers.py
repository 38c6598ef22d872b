"""Classifiers by `nystromer train`, each beside its twin with exact attention.

    python -m benchmarks recipes.classifiers run FOLDER --data-dir DIR [--model FOLDER]
                                            [--only NAME NAME] [--seeds 0]
    python -m benchmarks recipes.classifiers gather FOLDER [--output FILE]

`run` trains what is not yet trained, one after the other, in folders of their own. Stopped, it
goes on when given again; given twice at a time, the two share the work. A new model learns from
nothing; with --model, a folder of `nystromer pretrain`, those named "pretrained" start from it (its
exact twin in FOLDER-exact, and both lengthened in FOLDER-2048 and FOLDER-exact-2048 beside it), and
all that read words take its tokenizer. `gather` writes
the metrics of all finished runs to results/recipes.csv. Rates were chosen on SpamAssassin's
training file (docs/log.md) and are the same for twins; test files are looked at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common

Rows = list[dict[str, str]]
ATTENTIONS = ("nystrom", "exact")
NEW = "--batch-size 32 --learning-rate 1e-3 --token-dropout 0.15"
DNA = (
    "--text-column sequence --tokenizer dna --batch-size 32 --learning-rate 1e-3 --token-dropout 0"
)


@dataclass(frozen=True)
class Experiment:
    """`nystromer train` with these words; {data} and {model} are filled in."""

    words: str
    seeds: tuple[int, ...] = (0,)


EXPERIMENTS = {
    "spam": Experiment(
        "--train-file {data}/spamassassin/train.jsonl.xz "
        "--eval-file {data}/spamassassin/dev.jsonl.xz "
        "--tokenizer bytes --max-length 2048 --preset tiny --epochs 4"
    ),
    "promoters": Experiment(
        "--train-file {data}/genomics/prom_300_tata/train.jsonl.xz "
        "--eval-file {data}/genomics/prom_300_tata/dev.jsonl.xz "
        f"--test-file {{data}}/genomics/prom_300_tata/test.jsonl.xz {DNA} "
        "--max-length 302 --num-landmarks 32 --epochs 6",
        (0, 1, 2),
    ),
    "IMDB": Experiment(
        f"imdb --data-dir {{data}} --tokenizer {{model}} --max-length 2048 --epochs 1 {NEW}"
    ),
    "MRPC": Experiment(
        f"mrpc --data-dir {{data}} --tokenizer {{model}} --max-length 256 --epochs 4 {NEW}",
        (0, 1, 2),
    ),
    "SST-2": Experiment(
        f"sst2 --data-dir {{data}} --tokenizer {{model}} --max-length 128 --epochs 2 "
        f"--num-landmarks 16 {NEW}"
    ),
    "gene families": Experiment(
        f"--train-file {{data}}/genomics/gene_family_chimp.jsonl.xz {DNA} "
        "--max-length 4096 --epochs 4 --device-batch 4"  # exact attention's tables: 32 take 20 GB
    ),
    "hyperpartisan": Experiment(
        "--train-file {data}/hyperpartisan/train.jsonl.xz "
        "--eval-file {data}/hyperpartisan/dev.jsonl.xz "
        f"--tokenizer {{model}} --max-length 4096 --epochs 8 {NEW}",
        (0, 1, 2),
    ),
    "MRPC, pretrained": Experiment(
        "mrpc --data-dir {data} --model {model} --max-length 256 --epochs 4 "
        "--batch-size 32 --learning-rate 5e-4",
        (0, 1, 2),
    ),
    "SST-2, pretrained": Experiment(
        "sst2 --data-dir {data} --model {model} --max-length 128 --epochs 2 "
        "--num-landmarks 16 --batch-size 32 --learning-rate 5e-4"
    ),
    "IMDB, pretrained": Experiment(
        "imdb --data-dir {data} --model {model}-2048 --max-length 2048 --epochs 1 "
        "--batch-size 32 --learning-rate 5e-4"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "gather"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=common.RESULTS / "recipes.csv")
    arguments = parser.parse_args()
    if arguments.what == "gather":
        rows = gather(arguments.folder, common.read(arguments.output))
        common.write(rows, arguments.output)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        for seed in filter(arguments.seeds.__contains__, EXPERIMENTS[name].seeds):
            for attention in ATTENTIONS:
                run(name, attention, seed, arguments)


def run(name: str, attention: str, seed: int, arguments: argparse.Namespace) -> None:
    """Trains it unless it is trained, another process does, or the model is not there."""
    output = arguments.folder / f"{name.replace(' ', '-')}-{attention}-{seed}"
    words = EXPERIMENTS[name].words
    model = arguments.model
    if model is not None and attention == "exact" and "--model" in words:
        model = model.with_name(f"{model.name}-exact")
    if "{model}" in words:
        needed = None if model is None else Path(f"{model}{'-2048' * ('{model}-2048' in words)}")
        if needed is None or not (needed / "metrics.json").exists():
            print(f"{name}, {attention}: no pretrained model in {needed}, left out", flush=True)
            return
    with common.locked(output.with_suffix(".lock")) as mine:
        if mine and not (output / "metrics.json").exists():
            filled = words.format(data=arguments.data_dir, model=model).split()
            filled += ["--attention", attention, "--seed", str(seed), "--output", str(output)]
            print("nystromer train", *filled, flush=True)
            command = [sys.executable, "-m", "nystromer", "train", *filled, "--resume"]
            subprocess.run(command, check=True)


def gather(folder: Path, known: Rows) -> Rows:
    """The known rows with those of the folder's finished runs in their place or after them."""
    rows = {(row["experiment"], row["attention"], row["seed"]): row for row in known}
    names = {name.replace(" ", "-"): name for name in EXPERIMENTS}
    for path in sorted(folder.glob("*/metrics.json")):
        stem, attention, seed = path.parent.name.rsplit("-", 2)
        metrics = json.loads(path.read_text(encoding="utf-8"))
        record = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
        split = "test" if "test" in metrics else "dev"
        found = {name: value for name, value in metrics[split].items() if name != "loss"}
        row = {
            "experiment": names[stem],
            "attention": attention,
            "seed": seed,
            "split": split,
            "train_rows": metrics["rows"]["train"],
            "rows": metrics["rows"][split],
            "accuracy": found.pop("accuracy"),
            "f1": next(iter(found.values())),
            "parameters": record["parameters"],
            "device": record["device"],
            "torch": record["versions"]["torch"],
        }
        rows[row["experiment"], attention, seed] = {k: common.text(v) for k, v in row.items()}
    return list(rows.values())


def lines(rows: Rows) -> list[list[str]]:
    """An experiment a line: mean over the seeds (their range) of both attentions, and by how much
    they differ."""
    found = []
    for name in dict.fromkeys(row["experiment"] for row in rows):
        metric = "f1" if name.startswith("MRPC") else "accuracy"
        scores = {
            attention: [
                100 * float(row[metric])
                for row in rows
                if (row["experiment"], row["attention"]) == (name, attention)
            ]
            for attention in ATTENTIONS
        }
        row = next(row for row in rows if row["experiment"] == name)
        rows_of = [f"{int(row['train_rows']):,}", f"{int(row['rows']):,} ({row['split']})"]
        line = [name, metric, *rows_of, *(cell(scores[attention]) for attention in ATTENTIONS), ""]
        if all(scores.values()):
            nystrom, exact = (statistics.mean(scores[attention]) for attention in ATTENTIONS)
            line[-1] = f"{nystrom - exact:+.1f}"
        found.append(line)
    return found


def cell(scores: list[float]) -> str:
    if len(scores) < 2:
        return "".join(f"{score:.1f}" for score in scores)
    return f"{statistics.mean(scores):.1f} ({min(scores):.1f}–{max(scores):.1f})"
