"""Shows what one layer saves against exact attention: the paper's Table 1.

    python -m benchmarks attention.table1 [--quick] [--fresh] [--output FILE]

Takes about three minutes on two cores.

One sequence through one self-attention module of BERT-base's size (768 features, 12 heads), without
gradients. Exact attention twice: `naive`, the softmax of an N x N table as in the paper's baseline,
and `sdpa`, torch's, which keeps no such table. Projections are the same in all; ours has the
convolution. The three run in turn in one process, memory is measured in a process of its own each.
Writes results/table1.csv after every case, and keeps the rows that it has; --fresh measures them
again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from nystromer import NystromAttention
from nystromer.bench import worker

FEATURES, HEADS = 768, 12
REPEATS, TIME_LIMIT = 5, 30.0
METHODS = ("naive", "sdpa", "ours")
LENGTHS = (512, 1024, 2048, 4096, 8192)
# The paper's, on a GTX 1080 Ti: (MB, ms) at LENGTHS; None: its exact attention
PAPER = {
    None: [(54, 0.8), (186, 2.4), (685, 10.0), (2620, 32.9), (10233, 155.4)],
    64: [(35, 0.7), (63, 1.3), (118, 2.7), (229, 5.9), (450, 12.3)],
    32: [(26, 0.6), (49, 1.2), (96, 2.6), (193, 5.6), (383, 11.5)],
}


@dataclass(frozen=True)
class Case:
    n: int
    num_landmarks: int


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def module(case: Case, method: str, backend: str = "auto") -> Callable[[Tensor], Tensor]:
    """Returns a self-attention layer by one of METHODS; all have the same projections."""
    torch.manual_seed(0)
    layer = NystromAttention(FEATURES, HEADS, num_landmarks=case.num_landmarks, backend=backend)
    if method == "ours":
        return layer
    attend = {"naive": naive, "sdpa": F.scaled_dot_product_attention}[method]

    def exact(x: Tensor) -> Tensor:
        to_heads = (layer.q_proj, layer.k_proj, layer.v_proj)
        heads = (p.to(x.dtype)(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for p in to_heads)
        return layer.out_proj.to(x.dtype)(attend(*heads).transpose(1, 2).flatten(2))

    return exact


def tokens(n: int) -> Tensor:
    return torch.randn(1, n, FEATURES, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def timed(case: Case) -> dict[str, Any]:
    """Returns times and savings; the first run of each is compared to the equations in float64."""
    x = tokens(case.n)
    calls = [functools.partial(module(case, method), x) for method in METHODS]
    found: dict[str, Any] = {}
    expected = {"ours": module(case, "ours", "eager").double()(x.double())}
    expected["naive"] = expected["sdpa"] = module(case, "sdpa")(x.double())
    for method, call in zip(METHODS, calls, strict=True):
        off = worker.relative_error(call(), expected[method])
        if not off <= worker.TOLERANCES["float32"]:
            raise SystemExit(f"{method}, {case}: {off:.1e} off float64; no time is reported.")
        found[f"{method}_off"] = off
    rounds = common.in_turn(calls, REPEATS, TIME_LIMIT)
    for i, method in enumerate(METHODS):
        found[f"{method}_ms"] = common.median_ms(rounds, i)
    return {**found, **{f"{METHODS[i]}_ratio": common.median_ratio(rounds, i, 2) for i in (0, 1)}}


@torch.no_grad()
def peak_mib(case: Case, method: str) -> float:
    """Returns by how many MiB one run makes the process grow beyond input and weights."""
    call, x = module(case, method), tokens(case.n)
    call(x[:, : 2 * case.num_landmarks])  # loads libraries and starts threads
    worker.reset_peak()
    before = worker.peak_bytes()
    call(x)
    return (worker.peak_bytes() - before) / 2**20


def measure(case: Case) -> dict[str, Any]:
    found = common.fresh_process(timed, case)
    peaks = {f"{m}_mib": common.fresh_process(peak_mib, case, m) for m in METHODS}
    return {**found, **peaks}


def main() -> None:
    arguments = common.options(__doc__, "table1").parse_args()
    cases = [Case(n, m) for m in (64, 32) for n in LENGTHS]
    if arguments.quick:
        cases = [Case(256, 32)]
    for row in common.complete(arguments.output, cases, measure, arguments.fresh):
        print(
            "N {n:>5}  M {num_landmarks}  {ours_ms} ms, {ours_mib} MiB; "
            "{naive_ratio}x naive, {sdpa_ratio}x sdpa".format(**row)
        )
