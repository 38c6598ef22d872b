"""Shows how time and memory of exact and Nyström attention grow with length.

    python -m benchmarks attention.growth [--quick] [--fresh] [--output FILE]

Takes about a quarter of an hour on two cores.

One attention of 8 heads of 64, M = 64, every case in a process of its own. Exact attention stops
where a run would take over 20 seconds. Writes results/growth.csv after every case, and keeps the
rows that it has; --fresh measures them again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy import stats

from benchmarks import common
from nystromer import bench

METHODS = ("exact", "eager", "blocked", "native")
LENGTHS = [2**i for i in range(9, 19)]  # 512 ... 262,144
FIT_FROM = 4096  # tokens; below, fixed costs count


class Exponent(NamedTuple):
    """The exponent b of y = a N^b, with half the width of its 95 % confidence interval."""

    value: float
    margin: float


def exponent(points: Sequence[tuple[int, float]]) -> Exponent | None:
    """Fits log y to log N by least squares over the points (N, y) with N of at least 4,096.

    Returns None if there are fewer than three.
    """
    points = [(n, y) for n, y in points if n >= FIT_FROM]
    if len(points) < 3:
        return None
    fit = stats.linregress(*np.log(points).T)
    return Exponent(fit.slope, stats.t.ppf(0.975, len(points) - 2) * fit.stderr)


def last_exponent(points: Sequence[tuple[int, float]]) -> float:
    """Returns the exponent between the two longest, where fixed costs count least."""
    (n, y), (longer, more) = points[-2:]
    return math.log(more / y) / math.log(longer / n)


def main() -> None:
    arguments = common.options(__doc__, "growth").parse_args()
    kept = arguments.output.exists() and not arguments.fresh
    known = bench.read_csv(arguments.output) if kept else []
    lengths, directions = ([128], (False,)) if arguments.quick else (LENGTHS, (False, True))
    rows: dict[bench.Case, bench.Row] = {row.case: row for row in known}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=len(directions) * len(METHODS) * len(lengths))

        def keep(row: bench.Row) -> None:
            rows[row.case] = row
            bench.write_csv(list(rows.values()), arguments.output)
            progress.advance(bar)

        for backward in directions:
            bench.sweep(lengths, METHODS, backward=backward, known=known, on_row=keep)
    for row in rows.values():
        print(row.case.method, row.case.n, row.seconds, row.peak_bytes, row.note)
