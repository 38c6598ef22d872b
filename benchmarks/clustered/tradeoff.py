"""Shows how close to exact an embedding gets for the time its attention takes.

    python -m benchmarks clustered.tradeoff [--quick] [--fresh] [--output FILE]

Takes about five minutes on two cores.

Reviews (IMDB test) of 2,048 tokens in all-MiniLM-L6-v2, positions copied, every layer swapped; the
time is that of one attention of its shape (12 heads of 32), in turn with exact attention. Writes
results/clustered_tradeoff.csv after every case, and keeps the rows that it has; --fresh measures
them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import common
from benchmarks.clustered.methods import BUDGETS, Attention, clustered, nystrom
from benchmarks.clustered.quality import Case, fidelity

REPEATS, TIME_LIMIT = 15, 60.0  # seconds a case


@dataclass(frozen=True)
class Point:
    """One method at one number of keys a query."""

    text: str
    method: str
    tokens: int
    keys: int


def points(quick: bool) -> list[Point]:
    if quick:
        return [Point("Python's help", name, 512, 64) for name in ("Nyström", "clustered")]
    found = [Point("reviews", "Nyström", 2048, 2 * m) for m in (32, 64, 128, 256, 512)]
    return found + [Point("reviews", "clustered", 2048, keys) for keys in BUDGETS]


def attention_of(point: Point) -> Attention:
    if point.method == "clustered":
        return partial(clustered, budget=BUDGETS[point.keys])
    return partial(nystrom, m=point.keys // 2)


def measure(point: Point, passages: int) -> dict[str, Any]:
    attention = attention_of(point)
    case = Case(point.text, point.tokens, "copied", point.method, str(point.keys))
    found = fidelity(case, attention, passages)
    q, k, v = torch.randn(3, 1, 12, point.tokens, 32)
    calls = [
        lambda: F.scaled_dot_product_attention(q, k, v),
        lambda: attention(q, k, v, None, 32**-0.5),
    ]
    for call in calls:
        call()
    rounds = common.in_turn(calls, REPEATS, TIME_LIMIT)
    return {
        **{name: found[name] for name in ("passages", "cosine", "worst", "token_error")},
        "exact_ms": common.median_ms(rounds, 0),
        "ms": common.median_ms(rounds, 1),
        "to_exact": common.median_ratio(rounds, 0, 1),
    }


def main() -> None:
    arguments = common.options(__doc__, "clustered_tradeoff").parse_args()
    case = partial(measure, passages=2 if arguments.quick else 6)
    for row in common.complete(arguments.output, points(arguments.quick), case, arguments.fresh):
        print(row["method"], row["keys"], row["cosine"], f"{row['ms']} ms", f"{row['to_exact']}x")
