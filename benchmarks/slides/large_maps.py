"""Shows how long the map of a large bag takes, and how much memory.

    python -m benchmarks slides.large_maps [--quick] [--fresh] [--output FILE]

Takes about four minutes on two cores.

200,000 patches of 1,024 features in float16 through a TransMIL with random weights, every method
but `ig` (32 passes of `gradient`, in its memory), each in a process of its own. Seconds are those
of the clock and those that all cores worked; memory is the most that the process held, with Python
and PyTorch. Writes results/large_maps.csv after every case, and keeps the rows that it has.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch

from benchmarks import common
from nystromer.bench.worker import peak_bytes
from nystromer.mil.maps import METHODS, explain, for_class
from nystromer.mil.models import build_model


@dataclass(frozen=True)
class Case:
    """A method, and the number of patches."""

    method: str
    patches: int


def measured(case: Case) -> dict[str, float]:
    """Makes the map once, and returns what it took."""
    torch.manual_seed(0)
    model = build_model("transmil", width=1024, num_classes=2).eval()
    features = torch.randn(case.patches, 1024).half()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    scores = explain(model, features, for_class(1), method=case.method)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    assert scores.isfinite().all()
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": worked, "peak_mib": peak_bytes() / 2**20}


def main() -> None:
    arguments = common.options(__doc__, "large_maps").parse_args()
    patches = 300 if arguments.quick else 200_000
    cases = [Case(method, patches) for method in METHODS if method != "ig"]
    rows = common.complete(
        arguments.output,
        cases,
        lambda case: common.fresh_process(measured, case),
        arguments.fresh,
    )
    for row in rows:
        print(f"{row['method']}: {row['seconds']} s, {row['peak_mib']} MiB")
