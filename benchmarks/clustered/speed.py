"""Shows how fast clustered attention is on this CPU, beside exact and Nyström.

    python -m benchmarks clustered.speed [--quick] [--fresh] [--output FILE]

Takes about five minutes on two cores.

Exact attention is SDPA, torch's; ours is the backend that `auto` takes, and blocked stands beside
it. Every case is first checked against the equations in float64, gradients too; then the four run
in turn, and the median of the ratios of each round is reported.
Inputs have groups of tokens, as those of trained encoders do; times do not depend on them. Writes
results/clustered_speed.csv after every case, and keeps the rows that it has; --fresh measures them
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from benchmarks.common import DIRECTIONS, TOLERANCES
from nystromer import clustered_attention, nystrom_attention

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
BUDGETS = ((32, 8, 24), (64, 16, 48), (64, 32, 96), (128, 32, 96))  # G, M, T
DEFAULT = BUDGETS[1]
REPEATS, TIME_LIMIT = 9, 20.0  # seconds a case


@dataclass(frozen=True)
class Case:
    n: int
    heads: int
    head_dim: int
    dtype: str
    direction: str
    query_clusters: int
    key_clusters: int
    exact_keys: int

    @property
    def budget(self) -> dict[str, int]:
        return {
            "num_query_clusters": self.query_clusters,
            "num_key_clusters": self.key_clusters,
            "num_exact_keys": self.exact_keys,
        }


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case(200, 2, 16, "float32", direction, *DEFAULT) for direction in DIRECTIONS]
    found = [Case(n, 8, 64, "float32", d, *DEFAULT) for d in DIRECTIONS for n in LENGTHS]
    found += [Case(n, 8, 64, "bfloat16", "forward", *DEFAULT) for n in LENGTHS]
    small = [Case(n, 12, 32, "float32", "forward", *b) for b in BUDGETS for n in LENGTHS[:5]]
    return found + small


def tokens(case: Case) -> Tensor:
    """Returns tokens around 30 centres, [B, H, N, D]."""
    centres = 2 * torch.randn(1, case.heads, 30, case.head_dim)
    x = centres[:, :, torch.randint(30, (case.n,))]
    return (x + 0.5 * torch.randn(x.shape)).to(getattr(torch, case.dtype))


def measure(case: Case) -> dict[str, object]:
    torch.manual_seed(0)
    backward = case.direction != "forward"
    q, k, v = (tokens(case).requires_grad_(backward) for _ in range(3))
    grad = torch.randn(q.shape).to(q.dtype)

    def run(attention: Callable[..., Tensor], *inputs: Tensor, **options: object) -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [attention(*inputs, **options)]
        output = attention(*inputs, **options)
        return [output, *torch.autograd.grad(output, inputs, grad.to(output.dtype))]

    double = [x.detach().double().requires_grad_(backward) for x in (q, k, v)]
    wanted = run(clustered_attention, *double, **case.budget, backend="eager")
    backends = ("auto", "blocked")
    error = max(
        common.error_of(run(clustered_attention, q, k, v, **case.budget, backend=x), wanted)
        for x in backends
    )
    if not error <= TOLERANCES[case.dtype]:
        raise SystemExit(f"{case}: error {error:.1e}, no speed.")
    calls = [
        lambda: run(F.scaled_dot_product_attention, q, k, v),
        lambda: run(nystrom_attention, q, k, v),
        *(partial(run, clustered_attention, q, k, v, **case.budget, backend=x) for x in backends),
    ]
    for call in calls:
        call()
    rounds = common.in_turn(calls, REPEATS, TIME_LIMIT)
    return {
        "exact_ms": common.median_ms(rounds, 0),
        "nystrom_ms": common.median_ms(rounds, 1),
        "ours_ms": common.median_ms(rounds, 2),
        "blocked_ms": common.median_ms(rounds, 3),
        "to_exact": common.median_ratio(rounds, 0, 2),
        "to_nystrom": common.median_ratio(rounds, 1, 2),
        "to_blocked": common.median_ratio(rounds, 3, 2),
        "error": error,
    }


def main() -> None:
    arguments = common.options(__doc__, "clustered_speed").parse_args()
    for row in common.complete(arguments.output, cases(arguments.quick), measure, arguments.fresh):
        print(
            f"{row['n']:>6} {row['heads']}x{row['head_dim']} {row['dtype']} {row['direction']} "
            f"{row['query_clusters']}/{row['key_clusters']}/{row['exact_keys']}: "
            f"{row['to_exact']}x ({row['exact_ms']} / {row['ours_ms']} ms), "
            f"{row['to_blocked']}x blocked"
        )
