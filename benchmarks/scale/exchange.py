"""Shows how many bytes two processes exchange for one sequence, and how right their result is.

    python -m benchmarks scale.exchange [--quick] [--fresh] [--output FILE]

Takes about two minutes.

One attention of 8 heads of 64 in float32, M = 64, 33 taps, forward and backward. A row says how
many bytes each process hands to the others, how many ring attention and the all-to-all exchange of
DeepSpeed-Ulysses hand over by their formulas, and how far output and gradients are from those of
one process. Writes results/scale_exchange.csv.

Ring attention passes the keys and values of a part on, S - 1 times, and again with their gradients
in the backward. The all-to-all exchange sends the queries, keys, values and outputs of a part but
for the share that stays, and their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import nystromer
from benchmarks import common
from benchmarks.scale.processes import CountBytes, in_processes
from nystromer.distributed import nystrom_attention

HEADS, DIM, M, TAPS = 8, 64, 64, 33
LENGTHS = [2**i for i in range(12, 19)]
PROCESSES = 2


@dataclass(frozen=True)
class Case:
    """Names one row."""

    tokens: int
    processes: int = PROCESSES


def inputs(tokens: int) -> list[Tensor]:
    """Returns q, k, v and the gradient of the output, [1, H, N, D], and the taps, [H, K]."""
    torch.manual_seed(0)
    long = [torch.randn(1, HEADS, tokens, DIM) for _ in range(4)]
    return [*long, 0.1 * torch.randn(HEADS, TAPS)]


def results(attend: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Returns the output and the gradients of q, k, v and the taps."""
    q, k, v, grad, taps = tensors
    leaves = [x.clone().requires_grad_() for x in (q, k, v, taps)]
    output = attend(*leaves[:3], num_landmarks=M, conv_weight=leaves[3])
    output.backward(grad)
    return [output.detach(), *(x.grad for x in leaves)]  # type: ignore[misc]


def shared(tokens: int) -> dict[str, Any]:
    """Returns what this process handed over, and the error of its part."""
    *long, taps = inputs(tokens)
    rank, size = dist.get_rank(), dist.get_world_size()
    part = slice(tokens * rank // size, tokens * (rank + 1) // size)
    with CountBytes() as count:
        found = results(nystrom_attention, [*(x[:, :, part] for x in long), taps])
    dist.all_reduce(found[-1])  # taps: every process has the gradient of its part
    wanted = results(nystromer.nystrom_attention, [*long, taps])
    wanted = [*(x[:, :, part] for x in wanted[:-1]), wanted[-1]]
    errors = [float((x - y).norm() / y.norm()) for x, y in zip(found, wanted, strict=True)]
    return {"bytes": count.total, "error": max(errors)}


def formulas(tokens: int, processes: int) -> dict[str, int]:
    """Returns the bytes of ring attention and of the all-to-all exchange, forward and backward."""
    tensor = 4 * HEADS * DIM * tokens // processes  # of one part
    return {
        "ring_bytes": (2 + 4) * tensor * (processes - 1),
        "all_to_all_bytes": 2 * 4 * tensor * (processes - 1) // processes,
    }


def measure(case: Case) -> dict[str, Any]:
    """Returns the numbers of a row."""
    parts = in_processes(case.processes, 1, shared, case.tokens)
    return {
        "bytes": max(part["bytes"] for part in parts),
        **formulas(case.tokens, case.processes),
        "error": max(part["error"] for part in parts),
    }


def main() -> None:
    args = common.options(__doc__, "scale_exchange").parse_args()
    cases = [Case(n) for n in ([256, 512] if args.quick else LENGTHS)]
    for row in common.complete(args.output, cases, measure, args.fresh):
        print(
            f"{int(row['tokens']):>8,} tokens{int(row['bytes']):>12,} bytes, error {row['error']}"
        )
