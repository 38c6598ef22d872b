"""Shows whether models learn what lies far away, or in another process if there are two.

    python -m benchmarks scale.far [--quick] [--fresh] [--output FILE]

Takes about twenty minutes on two cores.

A row is 2,048 bytes of Python's standard library. One token in its second half, at a random place,
is one of eight signs, and the state of the first token has to say which. The models have 2 layers
of 64, M = 64 and 33 taps, and learn 600 updates of 16 rows. "one process" reads whole rows, "two
processes" cut them in half with sequence_parallel, "first half" reads the half without the sign,
and "exact" is exact attention in one process. Chance is 0.125. Writes results/scale_far.csv.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import common
from benchmarks.scale.million import text_bytes
from benchmarks.scale.processes import in_processes
from nystromer.distributed import sequence_parallel
from nystromer.hf import NystromformerConfig, NystromformerForSequenceClassification

SIGNS, FIRST_SIGN = 8, 257
WAYS = ("exact", "one process", "two processes", "first half")


@dataclass(frozen=True)
class Case:
    """Names one row."""

    way: str
    tokens: int = 2048
    updates: int = 600
    seed: int = 0


def rows(text: Tensor, count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Draws rows of text with a sign in their second half, and which sign it is."""
    starts = torch.randint(len(text) - tokens, (count, 1))
    ids = text[starts + torch.arange(tokens)]
    places = torch.randint(tokens // 2, tokens, (count, 1))
    signs = torch.randint(SIGNS, (count,))
    return ids.scatter(1, places, FIRST_SIGN + signs[:, None]), signs


def trained(case: Case) -> dict[str, float]:
    """Trains a model in this process, or together with the others; the last rows are new ones."""
    torch.manual_seed(case.seed)
    config = NystromformerConfig(
        vocab_size=FIRST_SIGN + SIGNS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_landmarks=64,
        conv_kernel_size=33,
        max_position_embeddings=case.tokens,
        hidden_dropout_prob=0.0,
        exact_attention=case.way == "exact",
        num_labels=SIGNS,
        pad_token_id=None,
    )
    model = NystromformerForSequenceClassification(config)
    size = dist.get_world_size()
    if size > 1:
        sequence_parallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    text = text_bytes(2**20, None)[0]
    read = case.tokens // 2 if case.way == "first half" else case.tokens
    start = time.perf_counter()
    for _ in range(case.updates):
        ids, signs = rows(text, 16, case.tokens)
        optimizer.zero_grad()
        model(ids[:, :read], labels=signs).loss.backward()
        if size > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= size  # type: ignore[operator]
        optimizer.step()
    seconds = time.perf_counter() - start
    ids, signs = rows(text, 512, case.tokens)
    with torch.inference_mode():
        found = torch.cat([model(part[:, :read]).logits.argmax(1) for part in ids.split(16)])
    return {"accuracy": float((found == signs).float().mean()), "seconds": seconds}


def measure(case: Case) -> dict[str, Any]:
    """Returns the numbers of a row."""
    size = 2 if case.way == "two processes" else 1
    return in_processes(size, 2 // size, trained, case)[0]


def main() -> None:
    args = common.options(__doc__, "scale_far").parse_args()
    cases = [Case(way, 256, 3) if args.quick else Case(way) for way in WAYS]
    for row in common.complete(args.output, cases, measure, args.fresh):
        print(f"{row['way']:16}accuracy {row['accuracy']} after {float(row['seconds']):.0f} s")
