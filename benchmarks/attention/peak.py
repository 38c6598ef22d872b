"""Shows how much of what the cores can multiply is left to `native`.

    python -m benchmarks attention.peak [--quick] [--fresh] [--output FILE]

Takes about a minute on two cores.

One call (8 heads of 64, M = 64, convolution of 33, float32) for each length and number of cores,
in turn with torch's product of two 1,024 x 1,024 matrices, which shows what the cores can do. The
multiply-adds of a call are those that the library makes for these sizes, without its powers of two,
sums and copies. Medians. Writes results/peak.csv.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import common
from nystromer import nystrom_attention

HEADS, DIM, M, TAPS, STEPS, APPLIED = 8, 64, 64, 33, 6, 4
SIZE = 1024


@dataclass(frozen=True)
class Case:
    """Names one row."""

    n: int
    cores: int


def products(n: int) -> int:
    """Returns the multiply-adds of a call: of tokens, of the convolution, and of the inverse.

    Of six steps the library forms two, each by four products, and applies four, whose matrices take
    one product, then two for each of the next three. Two of every four and all of the last two are
    symmetric, and cost half.
    """
    tokens = 4 * n * M * DIM
    formed = 3 * (STEPS - APPLIED) * M**3
    chain = APPLIED * M**3
    applied = (3 * APPLIED + 1) * M**2 * DIM
    return HEADS * (tokens + n * TAPS * DIM + M**2 * DIM + formed + chain + applied)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(case.cores)
    q, k, v = torch.randn(3, 1, HEADS, case.n, DIM)
    taps, (a, b) = torch.randn(HEADS, TAPS) / 6, torch.randn(2, SIZE, SIZE)
    call = partial(nystrom_attention, q, k, v, num_landmarks=M, conv_weight=taps, backend="native")
    with torch.inference_mode():
        common.in_turn([call, partial(torch.mm, a, b)], 3, float("inf"))
        rounds = common.in_turn([call, partial(torch.mm, a, b)], repeats, float("inf"))
    ms = [common.median_ms(rounds, i) for i in range(2)]
    rates = [2e-6 * products(case.n) / ms[0], 2e-6 * SIZE**3 / ms[1]]  # GFLOP/s
    return {"ms": ms[0], "gflops": rates[0], "mm_gflops": rates[1], "share": rates[0] / rates[1]}


def main() -> None:
    parser = common.options(__doc__, "peak")
    args = parser.parse_args()
    lengths, repeats = ((256,), 2) if args.quick else ((1024, 4096, 16384), 40)
    cases = [Case(n, cores) for n in lengths for cores in (1, 2)]
    for row in common.complete(args.output, cases, partial(in_process, repeats), args.fresh):
        print(
            f"{int(row['n']):>7,} tokens, {row['cores']} cores: {row['ms']} ms, "
            f"{float(row['gflops']):.0f} of {float(row['mm_gflops']):.0f} GFLOP/s"
        )


def in_process(repeats: int, case: Case) -> dict[str, Any]:
    return common.fresh_process(measure, case, repeats)
