"""Shows times of one sequence in two processes of one thread, and in one process.

    python -m benchmarks scale.speed [--quick] [--fresh] [--output FILE]

Takes about five minutes on two cores, and 12 GiB.

One attention of 2 heads of 64 in float32, M = 64, 33 taps, `native` where it was built. The two
processes talk through gloo, on one machine. A row is the median of the rounds and the most memory
of one process beyond its start. Writes results/scale_speed.csv.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import common
from benchmarks.scale.processes import in_processes
from nystromer.bench.worker import peak_bytes, reset_peak
from nystromer.distributed import nystrom_attention

HEADS, DIM, M, TAPS = 2, 64, 64, 33
LENGTHS = [2**i for i in (10, 12, 14, 16, 18, 20, 21)]
WAYS = {"one thread": (1, 1), "two threads": (1, 2), "two processes": (2, 1)}


@dataclass(frozen=True)
class Case:
    """Names one row."""

    way: str
    direction: str
    tokens: int


def part_of(case: Case) -> dict[str, float]:
    """Returns the time and the memory of this process."""
    rank, size = dist.get_rank(), dist.get_world_size()
    n = case.tokens * (rank + 1) // size - case.tokens * rank // size
    backward = case.direction != common.DIRECTIONS[0]
    torch.manual_seed(rank)
    reset_peak()
    before = peak_bytes()
    q, k, v = (torch.randn(1, HEADS, n, DIM, requires_grad=backward) for _ in range(3))
    taps = torch.randn(HEADS, TAPS, requires_grad=backward)
    times: list[float] = []
    for _ in range(max(3, min(20, 2**19 // case.tokens))):
        dist.barrier()
        start = time.perf_counter()
        output = nystrom_attention(q, k, v, num_landmarks=M, conv_weight=taps)
        if backward:
            output.backward(output.detach())
        del output
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "peak_mib": (peak_bytes() - before) / 2**20}


def measure(case: Case) -> dict[str, Any]:
    """Returns the numbers of a row: of the slower process, and of the larger."""
    parts = in_processes(*WAYS[case.way], part_of, case)
    return {name: max(part[name] for part in parts) for name in ("seconds", "peak_mib")}


def main() -> None:
    args = common.options(__doc__, "scale_speed").parse_args()
    lengths = [256] if args.quick else LENGTHS
    cases = [Case(way, d, n) for d in common.DIRECTIONS for n in lengths for way in WAYS]
    for row in common.complete(args.output, cases, measure, args.fresh):
        print(
            f"{row['way']:16}{row['direction']:20}{int(row['tokens']):>10,} tokens"
            f"{1e3 * float(row['seconds']):>11,.1f} ms{float(row['peak_mib']):>8,.0f} MiB"
        )
