"""What time buys: the embedding of a real encoder against the time of its attention.

    python -m benchmarks clustered.tradeoff [--quick] [--output FILE] [--fresh]

Reviews (IMDB test) of 2,048 tokens in all-MiniLM-L6-v2, positions copied, every layer swapped; the
time is that of one attention of its shape (12 heads of 32), in turn with exact attention. Writes
results/clustered_tradeoff.csv; `publish.py` draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from benchmarks.clustered.quality import BUDGETS, Case, clustered, fidelity, nystrom
from nystromer import plots

REPEATS, TIME_LIMIT = 15, 60.0  # seconds a case


@dataclass(frozen=True)
class Point:
    text: str
    method: str
    tokens: int
    keys: int


def points(quick: bool) -> list[Point]:
    if quick:
        return [Point("Python's help", name, 512, 64) for name in ("Nyström", "clustered")]
    found = [Point("reviews", "Nyström", 2048, 2 * m) for m in (32, 64, 128, 256, 512)]
    return found + [Point("reviews", "clustered", 2048, keys) for keys in BUDGETS]


def attention_of(point: Point) -> Callable[..., Tensor]:
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


def figure(rows: list[dict[str, str]]) -> Figure:
    """1 - cosine against the share of exact attention's time."""
    result = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = result.subplots()
    for method, colour in (("Nyström", plots.ORANGE), ("clustered", plots.BLUE)):
        mine = [row for row in rows if row["method"] == method]
        x = [1 / float(row["to_exact"]) for row in mine]
        y = [1 - float(row["cosine"]) for row in mine]
        axes.plot(x, y, "o-", color=colour, label=f"{method}, by keys a query")
        for row, *point in zip(mine, x, y, strict=True):
            axes.annotate(row["keys"], point, (5, 5), textcoords="offset points", fontsize=8)
    axes.axvline(1, color=plots.GREY, ls=":", lw=1)
    axes.set(xlabel="time of one attention / exact", ylabel="1 − cosine of the embedding")
    axes.set(xscale="log", yscale="log", title="Reviews of 2,048 tokens, every layer swapped")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return result


def main() -> None:
    parser = common.options(__doc__.splitlines()[0], common.RESULTS / "clustered_tradeoff.csv")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    arguments = parser.parse_args()
    case = partial(measure, passages=2 if arguments.quick else 6)
    for row in common.complete(arguments.output, points(arguments.quick), case, arguments.fresh):
        print(row["method"], row["keys"], row["cosine"], f"{row['ms']} ms", f"{row['to_exact']}x")
