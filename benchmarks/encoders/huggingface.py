"""Shows how close a converted encoder stays, and how much faster it gets.

    python -m benchmarks encoders.huggingface [--part embeddings | speed] [--repeats 9]

Takes about five minutes on two cores.

All layers of all-MiniLM-L6-v2 are swapped by `nystromize`, and nothing is trained. The texts are
Python's help and, where there are such files, IMDB reviews, the Brown corpus and WikiText-2;
minilm.py says where weights and texts come from. Writes results/hf_embeddings.csv and hf_speed.csv.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import common
from benchmarks.encoders.minilm import DATA, documents, minilm
from nystromer.hf import nystromize, resize_positions

TEXTS = {
    "Python help": None,
    "IMDB": "imdb/test.jsonl.xz",
    "Brown": "brown/all.jsonl.xz",
    "WikiText-2": "wikitext2/test.txt.xz",
}
PASSAGES, TOKENS, CHARACTERS = 16, 512, 200_000  # of a text no more is read
LANDMARKS = (16, 32, 64, 128)
LENGTHS = (512, 1024, 2048, 4096)


def passages(tokenizer: Any, file: str | None) -> Tensor:
    """Returns the first passages of some forty documents, or of a single one, as token ids."""
    found = documents(file)
    text = " ".join(found[:: max(1, len(found) // 40)])[:CHARACTERS]
    cut = {"max_length": TOKENS, "truncation": True, "return_overflowing_tokens": True}
    return torch.tensor(tokenizer(text, **cut)["input_ids"][:PASSAGES])


@torch.no_grad()
def embeddings(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return torch.cat([model(part)[0].mean(1) for part in ids.split(4)])


def embedding_rows() -> list[dict[str, object]]:
    """Compares the embedding of every passage with that of the exact encoder, by their cosine."""
    model, tokenizer = minilm()
    cases = [(m, None) for m in LANDMARKS] + [(64, (3, 4, 5))]
    swapped = [
        nystromize(copy.deepcopy(model), m, layers=layers, min_length=1) for m, layers in cases
    ]
    texts = [name for name, file in TEXTS.items() if file is None or (DATA / file).exists()]
    rows = []
    for name in common.progress(texts):
        ids = passages(tokenizer, TEXTS[name])
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


@torch.no_grad()
def speed_rows(repeats: int) -> list[dict[str, object]]:
    """Times exact and swapped in turn on one sequence; its positions are made longer first."""
    model, tokenizer = minilm()
    words = tokenizer(documents(None)[0], verbose=False)["input_ids"]
    exact = resize_positions(model, max(LENGTHS))
    ours = nystromize(copy.deepcopy(exact), 64, min_length=1)
    rows = []
    for n in common.progress(LENGTHS):
        calls = [partial(encoder, torch.tensor([words[:n]])) for encoder in (exact, ours)]
        rounds = common.in_turn(calls, repeats + 1, math.inf)[1:]  # the first one warms up
        rows.append(
            {
                "n": n,
                "num_landmarks": 64,
                "exact_ms": common.median_ms(rounds, 0),
                "ours_ms": common.median_ms(rounds, 1),
                "ratio": common.median_ratio(rounds, 0, 1),
                **common.MACHINE,
            }
        )
    return rows


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--part", choices=("embeddings", "speed"), help="both if left out")
    parser.add_argument("--repeats", type=int, default=9, help="runs of which the median counts")
    arguments = parser.parse_args()
    if arguments.part in (None, "embeddings"):
        common.write(embedding_rows(), common.RESULTS / "hf_embeddings.csv")
    if arguments.part in (None, "speed"):
        common.write(speed_rows(arguments.repeats), common.RESULTS / "hf_speed.csv")
