"""Shows how fast Nyström attention is on this CPU, beside others.

    python -m benchmarks attention.cpu [--repeats 5] [--only nystrom-attention]

Takes about seven minutes on two cores.

The others: the same equations in plain PyTorch, the package nystrom-attention, and exact attention.
Every case is first checked against the equations in float64, gradients too; then ours and the other
run in turn, each in a process of its own, and the median of the paired ratios is reported. (In one
process, what one leaves of the allocator decides how many fresh pages the other must take: the time
of plain PyTorch changes by a factor of three with them.) With M = 256 landmarks that are almost
alike, float32 itself is not accurate enough for the gradients: there ours may be off by as much as
the equations as written are in float32. Writes results/cpu.csv, unless --only.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import nystrom_attention as old
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from benchmarks.attention.plain import plain
from benchmarks.common import DIRECTIONS, TOLERANCES, error_of
from nystromer import nystrom_attention
from nystromer.compat import lucidrains

HEADS, DIM, KERNEL = 8, 64, 33
OTHERS = ("plain PyTorch", "nystrom-attention", "exact")


@dataclass(frozen=True)
class Case:
    """One of the others at one size."""

    against: str
    n: int
    m: int
    dtype: str
    backward: bool

    def calls(self) -> dict[str, Callable[[], object]]:
        """Returns what is timed by name, "other" and "ours": the same problem every time."""
        torch.manual_seed(0)
        if self.against == "nystrom-attention":
            theirs, own, x = layers(self.n)
            return {"other": no_grad(theirs, x), "ours": no_grad(own, x)}
        *inputs, grad = tensors(self)
        own_taps = None if self.against == "exact" else inputs[3]

        def run(call: Callable[[], Tensor]) -> Callable[[], object]:
            if not self.backward:
                return torch.no_grad()(call)
            return lambda: torch.autograd.grad(call(), inputs, grad, allow_unused=True)

        def ours() -> Tensor:
            return nystrom_attention(*inputs[:3], num_landmarks=self.m, conv_weight=own_taps)

        def other() -> Tensor:
            if self.against == "exact":
                return F.scaled_dot_product_attention(*inputs[:3])
            return plain(*inputs[:3], self.m, inputs[3])

        return {"other": run(other), "ours": run(ours)}

    def check(self) -> float:
        """Returns the error of ours; exits if it is too large for its time to count."""
        torch.manual_seed(0)
        tolerance = TOLERANCES[self.dtype]
        if self.against == "nystrom-attention":
            _, own, x = layers(self.n)
            expected = [no_grad(copy.deepcopy(own).double(), x.double())()]
            error, as_written = error_of([no_grad(own, x)()], expected), 0.0
        else:
            *inputs, grad = tensors(self)
            inputs = inputs[:3] if self.against == "exact" else inputs
            sizes = (grad, self.m, self.backward)
            exact = results([x.detach().double() for x in inputs], *sizes, "eager")
            error = error_of(results(inputs, *sizes, "auto"), exact)
            as_written = 0.0
            if error > tolerance:  # is it the arithmetic?
                as_written = error_of(results(inputs, *sizes, "eager"), exact)
        if not error <= max(tolerance, 1.5 * as_written):
            raise SystemExit(f"{self}: error {error:.1e}, no speed.")
        return error


def tensors(case: Case) -> list[Tensor]:
    """Returns q, k, v, taps, and the gradient of the output."""
    shape = (1, HEADS, case.n, DIM)
    made = [torch.randn(shape) for _ in range(3)]
    made += [torch.randn(HEADS, KERNEL) / 6, torch.randn(shape)]
    dtype = getattr(torch, case.dtype)
    return [x.to(dtype).requires_grad_(case.backward and i < 4) for i, x in enumerate(made)]


def layers(n: int) -> tuple[torch.nn.Module, torch.nn.Module, Tensor]:
    """Returns the layer of TransMIL, theirs and ours with its projections, and a bag of n tokens.

    It has 8 heads of 64 and M = 256; the bag is a batch of one.
    """
    sizes = {"dim": 512, "dim_head": 64, "heads": 8, "num_landmarks": 256, "dropout": 0.1}
    theirs, ours = old.NystromAttention(**sizes).eval(), lucidrains.NystromAttention(**sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(1, n, 512)


def no_grad(layer: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: layer(x))


def results(
    inputs: list[Tensor], grad: Tensor, m: int, backward: bool, backend: str
) -> list[Tensor]:
    """Returns the output and, if asked, the gradients of all inputs."""
    inputs = [x.detach().requires_grad_(backward) for x in inputs]
    options = {"num_landmarks": m, "conv_weight": (inputs[3:] or [None])[0], "backend": backend}
    output = nystrom_attention(*inputs[:3], **options)
    if not backward:
        return [output]
    return [output, *torch.autograd.grad(output, inputs, grad.to(output.dtype))]


def paired(case: Case, repeats: int) -> dict[str, float]:
    """Returns the median milliseconds of other and ours, and the median of their ratios by turn."""
    spawn = multiprocessing.get_context("spawn")
    ends = {}
    for name in ("other", "ours"):
        ends[name], end = spawn.Pipe()
        spawn.Process(target=contestant, args=(case, name, end), daemon=True).start()
    times: dict[str, list[float]] = {name: [] for name in ends}
    for go_on in [True] * repeats + [False]:
        for name, end in ends.items():
            end.send(go_on)
            if go_on:
                times[name].append(end.recv())
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    return {
        "other_ms": statistics.median(times["other"]),
        "ours_ms": statistics.median(times["ours"]),
        "ratio": statistics.median(ratios),
    }


def contestant(case: Case, name: str, end: Connection) -> None:
    """Runs its call, in a process of its own, whenever told to, and answers with milliseconds."""
    warnings.filterwarnings("ignore")
    call = case.calls()[name]
    while end.recv():
        time.sleep(0.1)  # the other's second thread waits busily at first
        call()  # caches are the other's still
        end.send(common.median_ms(common.in_turn([call], 3, float("inf")), 0))


def cases() -> Iterator[Case]:
    single, half = "float32", "bfloat16"
    for backward in (False, True):
        for n, m, dtype in [
            (4096, 64, single),
            (16384, 64, single),
            (65536, 64, single),
            (16384, 256, single),
            (16384, 64, half),
            (65536, 64, half),
        ]:
            yield Case("plain PyTorch", n, m, dtype, backward)
    for n in (1025, 10001):
        yield Case("nystrom-attention", n, 256, single, False)
    for n in (1024, 8192):
        yield Case("exact", n, 64, single, False)


def measure(case: Case, repeats: int) -> dict[str, object]:
    """Returns the row of a case."""
    error = case.check()  # of ours against float64: of the output, or a third of a gradient's
    return {
        "against": case.against,
        "n": case.n,
        "num_landmarks": case.m,
        "dtype": case.dtype,
        "direction": DIRECTIONS[case.backward],
        **paired(case, repeats),
        "error": error,
        **common.MACHINE,
    }


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns of which the median counts")
    parser.add_argument("--only", choices=OTHERS, help="measure against this one")
    arguments = parser.parse_args()
    chosen = [c for c in cases() if arguments.only in (None, c.against)]
    rows = [measure(case, arguments.repeats) for case in common.progress(chosen)]
    show(rows)
    if arguments.only is None:  # a part would replace the whole
        common.write(rows, common.RESULTS / "cpu.csv")


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title=f"ours against others, {torch.get_num_threads()} threads")
    for column in ("against", "N", "M", "dtype", "", "other ms", "ours ms", "ratio"):
        table.add_column(column, justify="right" if column not in ("against", "") else "left")
    for row in rows:
        table.add_row(*map(common.text, list(row.values())[:8]))
    Console().print(table)
