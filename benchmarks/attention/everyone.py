"""Shows time, memory and error of ours beside every other implementation.

    python -m benchmarks attention.everyone [--only linformer] [--quick] [--fresh] [--output FILE]

Takes about half an hour on two cores.

All get the same query, key and value as projections leave them, [1, N, 512] for 8 heads of 64, and
return [1, N, 512]: projections are taken out of layers that have them. The two of a row run in turn
in one process; the memory of each is measured in a process of its own. Those that compute the same
function have to agree with it in float64 first, and so do we. Writes results/everyone.csv after
every case, and keeps the rows that it has, so that a run can be stopped and go on; --fresh measures
them again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.attention.others import DIM, HEADS, OTHERS, TAPS, Case, other, ours
from benchmarks.common import DIRECTIONS
from nystromer import bench
from nystromer.bench import worker

REPEATS, TIME_LIMIT = 5, 6.0
EXACT_LIMIT = 16_384  # tokens; exact attention over four times as many takes a minute a run

PACKAGES = [  # imported once; one that is missing fails where it is used
    "nystrom_attention",
    "performer_pytorch",
    "linear_attention_transformer",
    "transformers.models.nystromformer.modeling_nystromformer",
]
common.PROCESSES.set_forkserver_preload([*common.IMPORTED_ONCE, *PACKAGES])


def cases(quick: bool = False) -> Iterable[Case]:
    shapes = [(n, m) for m in (64, 256) for n in (1024, 4096, 16_384, 65_536) if n * m <= 2**22]
    for n, m in [(256, 16)] if quick else shapes:
        for dtype in ("float32", "bfloat16"):
            for direction in DIRECTIONS[quick:]:
                for name in OTHERS:
                    if name != "exact" or n <= EXACT_LIMIT:
                        yield Case(name, n, m, dtype, direction)


def prepare(case: Case) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Returns [query, key, value], each [1, N, E], the taps, and the gradient of the output."""
    warnings.filterwarnings("ignore")  # of the others, in a process of their own
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    tokens = worker.inputs(bench.Case("exact", case.n, heads=HEADS, head_dim=DIM))
    tokens = [x.transpose(1, 2).flatten(2).to(dtype).requires_grad_(case.backward) for x in tokens]
    taps = (torch.randn(HEADS, TAPS) / 6).to(dtype)
    return tokens, taps, torch.randn_like(tokens[0]) if case.backward else None


def timed(case: Case) -> dict[str, Any]:
    """Returns all columns but memory. The first run of each is the one that is checked."""
    tokens, taps, grad = prepare(case)
    dtype = getattr(torch, case.dtype)
    attends = other(case, taps).to(dtype), ours(case, taps).to(dtype)
    calls = [functools.partial(worker.results, attend, tokens, grad) for attend in attends]
    results = [call() for call in calls]
    found = check(case, results, equations(case, tokens, taps, grad))
    if case.against in ("exact", "performer"):
        heads = [x.unflatten(2, (HEADS, DIM)).transpose(1, 2) for x in tokens]
        found["other_error"], found["ours_error"] = (
            worker.error_to_exact(result[0].unflatten(2, (HEADS, DIM)).transpose(1, 2), heads)
            for result in results
        )
    if not found["note"]:
        del results
        rounds = common.in_turn(calls, REPEATS, TIME_LIMIT)
        found["other_ms"], found["ours_ms"] = (common.median_ms(rounds, i) for i in (0, 1))
        found["ratio"] = common.median_ratio(rounds, 0, 1)
    return found


def equations(
    case: Case, tokens: list[Tensor], taps: Tensor, grad: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns what ours should give: the equations of the paper in float64."""
    double = [x.detach().double().requires_grad_(case.backward) for x in tokens]
    eager = ours(case, taps.double(), backend="eager")
    return worker.results(eager, double, None if grad is None else grad.double())


def check(
    case: Case, results: list[tuple[Tensor, ...]], expected: tuple[Tensor, ...]
) -> dict[str, Any]:
    """Returns how far the other and ours are off, and a note where that is too far.

    That of the output or that of all gradients as one vector, whichever is more; with gradients,
    three times as much is allowed. An other that computes another function is not compared.
    """
    found: dict[str, Any] = {"other_off": None, "ours_off": None, "note": ""}
    allowed = worker.TOLERANCES[case.dtype] * (3 if case.backward else 1)
    for name, result in zip(("other", "ours"), results, strict=True):
        if name == "other" and not case.same:
            continue
        parts = [(result[i], expected[i]) for i in (slice(1), slice(1, None)) if result[i]]
        offs = [worker.relative_error(_flat(got), _flat(wanted)) for got, wanted in parts]
        off = float(torch.tensor(offs).max())  # nan if one is
        found[f"{name}_off"] = off
        if not off <= allowed:
            found["note"] = f"{name} disagrees: {off:.1e} off the float64 equations"
    return found


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([x.double().flatten() for x in tensors])


def peak_mib(case: Case, make: Callable[[Case, Tensor], nn.Module]) -> float:
    """Returns by how many MiB one run makes the process grow beyond its inputs."""
    few = replace(case, n=2 * case.num_landmarks)  # loads libraries and starts threads
    for sized in (few, case):
        tokens, taps, grad = prepare(sized)
        attend = make(sized, taps).to(taps.dtype)
        worker.reset_peak()
        before = worker.peak_bytes()
        worker.results(attend, tokens, grad)
    return (worker.peak_bytes() - before) / 2**20


@functools.cache
def our_peak_mib(case: Case) -> float:
    return common.fresh_process(peak_mib, case, ours)


def measure(case: Case) -> dict[str, Any]:
    """Returns the columns of a case; where there is no number, the note says why."""
    names = ("other_ms", "ours_ms", "ratio", "other_mib", "ours_mib")
    errors = ("other_off", "ours_off", "other_error", "ours_error", "note")
    found: dict[str, Any] = dict.fromkeys((*names, *errors))
    try:
        found.update(common.fresh_process(timed, case))
        if not found["note"]:
            found["other_mib"] = common.fresh_process(peak_mib, case, other)
            like = "plain PyTorch" if case.same else "exact"  # all of ours that there is to measure
            found["ours_mib"] = our_peak_mib(replace(case, against=like))
    except Exception as error:
        found["note"] = f"fails: {type(error).__name__}: {str(error).splitlines()[0]}"
    return {**found, "version": importlib.metadata.version(OTHERS[case.against][1])}


def main() -> None:
    parser = common.options(__doc__, "everyone")
    parser.add_argument("--only", choices=OTHERS, help="measure this one")
    arguments = parser.parse_args()
    chosen = [c for c in cases(arguments.quick) if arguments.only in (None, c.against)]
    for row in common.complete(arguments.output, chosen, measure, arguments.fresh):
        what = "{against:18} N {n:>6} M {num_landmarks:>3} {dtype:8} {direction:18}".format(**row)
        print(what, row["note"] or f"{row['ratio']}x ({row['other_ms']} / {row['ours_ms']} ms)")
