"""Shows a simulation of one sequence of up to a billion tokens on 8 to 1,024 GPUs.

    python -m benchmarks scale.simulation

Takes no time.

Nothing is measured. One attention of 16 heads of 128 in float16, M = 64, 33 taps, batch 1, forward
and backward. Times of computing are those that FlashNystrom, another implementation of the
operation, and FlashAttention-3 have published for an H100, at 65,536 and 131,072 tokens, carried
on: in a line for Nyström attention, in a square for exact attention. Times of the exchange follow
from the bytes of scale.exchange, from the bandwidths of data sheets (NVLink 450 GB/s within 8 GPUs,
InfiniBand 50 GB/s a GPU beyond), and from an assumption: each of its steps takes 10 microseconds.

The time of exact attention is that of ring attention whose exchange hides behind computing: the
longer of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks import common

HEADS, DIM, M, TAPS = 16, 128, 64, 33
GPUS = (8, 64, 256, 1024)
TOKENS = (2**20, 2**24, 2**27, 2**30)

# Published for 4 sequences of 16 heads of 128, forward and backward, on an H100: (tokens, seconds).
FLASH_NYSTROM = ((4 * 65_536, 27.9e-3), (4 * 131_072, 53.67e-3))
FLASH_ATTENTION_3 = (131_072, 3380e-3 / 4)

NVLINK, INFINIBAND = 450e9, 50e9  # bytes a second and GPU, in one direction
STEP = 10e-6  # seconds, assumed
NODE = 8  # GPUs that NVLink joins
MEMORY = 80e9
KEPT = 8  # tensors of a part: q, k, v, the output, and their gradients

# Calls of collectives: settings, lengths, landmarks, largest mass, gathered, taps' neighbours, and
# in the backward gathered, landmarks, neighbours.
CALLS = 9


@dataclass(frozen=True)
class Step:
    """Seconds of one attention, forward and backward; NaN if it does not fit."""

    compute: float
    exchange: float
    exact: float

    @property
    def total(self) -> float:
        return self.compute + self.exchange


def simulated(gpus: int, tokens: int) -> Step:
    """Returns the times of a step."""
    part = tokens / gpus
    if KEPT * part * HEADS * DIM * 2 > MEMORY:
        return Step(math.nan, math.nan, math.nan)
    bandwidth = NVLINK if gpus <= NODE else INFINIBAND
    (n, short), (more, long) = FLASH_NYSTROM
    slope = (long - short) / (more - n)
    compute = short - slope * n + slope * part
    exchanged = 4 * HEADS * (M * (5 * DIM + DIM + 2) + (TAPS // 2) * 2 * DIM)
    exchange = CALLS * 2 * math.log2(gpus) * STEP + 2 * exchanged / bandwidth
    n, square = FLASH_ATTENTION_3
    ring = 6 * part * HEADS * DIM * 2 * (gpus - 1) / bandwidth
    return Step(compute, exchange, max(square * (tokens / n) ** 2 / gpus, ring))


def table() -> str:
    """Shows a line for each length and number of GPUs that hold it."""
    lines = []
    for tokens in TOKENS:
        for gpus in GPUS:
            step = simulated(gpus, tokens)
            if not math.isnan(step.compute):
                lines.append(
                    [
                        f"{tokens:,}",
                        f"{gpus:,}",
                        seconds(step.compute),
                        seconds(step.exchange),
                        f"{100 * step.exchange / step.total:.0f} %",
                        seconds(step.exact),
                    ]
                )
    header = ["tokens", "GPUs", "computing", "exchange", "its share", "exact, ring"]
    return common.markdown(header, lines)


def seconds(time: float) -> str:
    """Returns a time as people say it."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if time >= size:
            return f"{time / size:,.1f} {unit}"
    return f"{1e6 * time:,.0f} µs"


def main() -> None:
    common.command_line(__doc__).parse_args()
    print(table())
