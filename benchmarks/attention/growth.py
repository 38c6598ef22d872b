"""How the cost of exact and Nyström attention grows with N: the exponent of time and of memory.

    python -m benchmarks attention.growth [--quick] [--fresh] [--output FILE]

One attention of 8 heads of 64, M = 64, every case in a process of its own. Exact attention stops
where a run would take over 20 seconds. Writes results/growth.csv after every case; rows that it has
are kept, unless --fresh.
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

METHODS = ("exact", "eager", "blocked")
LENGTHS = [2**i for i in range(9, 19)]  # 512 ... 262,144
FIT_FROM = 4096  # tokens; below, fixed costs count


class Exponent(NamedTuple):
    """b of y = a N^b, with half the width of its 95 % confidence interval."""

    value: float
    margin: float


def exponent(points: Sequence[tuple[int, float]]) -> Exponent | None:
    """Least squares of log y on log N over (N, y), N >= 4,096; None for fewer than three."""
    points = [(n, y) for n, y in points if n >= FIT_FROM]
    if len(points) < 3:
        return None
    fit = stats.linregress(*np.log(points).T)
    return Exponent(fit.slope, stats.t.ppf(0.975, len(points) - 2) * fit.stderr)


def last_exponent(points: Sequence[tuple[int, float]]) -> float:
    """Of the two longest: what the growth comes to once fixed costs no longer count."""
    (n, y), (longer, more) = points[-2:]
    return math.log(more / y) / math.log(longer / n)


def main() -> None:
    parser = common.options(__doc__.splitlines()[0], common.RESULTS / "growth.csv")
    parser.add_argument("--fresh", action="store_true", help="measure every case again")
    arguments = parser.parse_args()
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
