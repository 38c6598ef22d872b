"""Shows how good classifiers are with Nyström attention, beside exact twins.

    python -m benchmarks recipes.classifiers run FOLDER --data-dir DIR [--model FOLDER]
                                            [--only NAME NAME] [--seeds 0]
    python -m benchmarks recipes.classifiers gather FOLDER [--output FILE]

Takes minutes to hours for each of its 36 trainings.

`run` trains what is not yet trained by `nystromer train`, one after the other, in folders of their
own. Stopped, it goes on when given again; given twice at a time, the two share the work. A new
model learns from nothing; with --model, a folder of `nystromer pretrain`, those named "pretrained"
start from it (its exact twin in FOLDER-exact, and both lengthened in FOLDER-2048 and
FOLDER-exact-2048 beside it), and all that read words take its tokenizer. `gather` writes the
metrics of all finished runs to results/recipes.csv. Rates were chosen on SpamAssassin's training
file (docs/log.md) and are the same for twins; test files are looked at once.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recipes import runs

ATTENTIONS = ("nystrom", "exact")
NEW = "--batch-size 32 --learning-rate 1e-3 --token-dropout 0.15"
DNA = (
    "--text-column sequence --tokenizer dna --batch-size 32 --learning-rate 1e-3 --token-dropout 0"
)


@dataclass(frozen=True)
class Experiment:
    """The words after `nystromer train`; {data} and {model} are filled in."""

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
    parser = runs.options(__doc__, "recipes")
    parser.add_argument("--model", type=Path, help="folder of a pretrained model")
    chosen = {"nargs": "+", "choices": EXPERIMENTS, "metavar": "NAME", "default": list(EXPERIMENTS)}
    parser.add_argument("--only", help=f"of {', '.join(EXPERIMENTS)}", **chosen)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of 0, 1, 2")
    arguments = parser.parse_args()
    if arguments.what == "gather":
        runs.gather(arguments, row_of, ("experiment", "attention", "seed"))
        return
    for name in arguments.only:
        for seed in filter(arguments.seeds.__contains__, EXPERIMENTS[name].seeds):
            for attention in ATTENTIONS:
                run(name, attention, seed, arguments)


def run(name: str, attention: str, seed: int, arguments: argparse.Namespace) -> None:
    """Trains one classifier unless the model that it starts from is not there."""
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
    filled = words.format(data=arguments.data_dir, model=model).split()
    runs.train_once(["train", *filled, "--attention", attention, "--seed", str(seed)], output)


def row_of(folder: Path) -> dict[str, object]:
    """Returns the row of a finished run."""
    stem, attention, seed = folder.name.rsplit("-", 2)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    split = "test" if "test" in metrics else "dev"
    found = {name: value for name, value in metrics[split].items() if name != "loss"}
    return {
        "experiment": {name.replace(" ", "-"): name for name in EXPERIMENTS}[stem],
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
