"""Speed on this CPU against plain PyTorch, the old package, and exact attention.

    python -m benchmarks attention.cpu [--repeats 5] [--only nystrom-attention]

Every case is first checked against the equations in float64, gradients too; then ours and the other
run in turn, each in a process of its own, and the median of the paired ratios is reported. (In one
process, what one leaves of the allocator decides how many fresh pages the other must take: plain
PyTorch's time moves by three with them.) Where float32 itself is not accurate (the gradients for
M = 256 landmarks that are almost alike), the equations as written, in float32, are the measure.
Writes benchmarks/results/cpu.csv, unless --only.
"""

from __future__ import annotations

import argparse
import copy
import csv
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path

import nystrom_attention as old
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import RESULTS
from nystromer import nystrom_attention
from nystromer.compat import lucidrains
from nystromer.pinv import iterative_pinv

HEADS, DIM, KERNEL = 8, 64, 33
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Result:
    against: str
    n: int
    num_landmarks: int
    dtype: str
    direction: str
    other_ms: float
    ours_ms: float
    ratio: float  # median of paired ratios other / ours
    error: float  # ours against float64: output, or a third of the worst gradient's
    torch: str
    cpu: str
    threads: int


def plain(q: Tensor, k: Tensor, v: Tensor, m: int, taps: Tensor) -> Tensor:
    """Eq. 14-17 as one would write them: [B, H, N, D], N divisible by m."""
    scale = q.shape[-1] ** -0.5
    q_tilde, k_tilde = (x.unflatten(2, (m, -1)).mean(3) for x in (q, k))
    kernel_1 = torch.softmax(scale * q @ k_tilde.mT, -1)
    kernel_2 = torch.softmax(scale * q_tilde @ k_tilde.mT, -1)
    kernel_3 = torch.softmax(scale * q_tilde @ k.mT, -1)
    inverse = iterative_pinv(kernel_2.float()).to(q.dtype)
    skip = F.conv2d(v, taps[:, None, :, None], padding=(KERNEL // 2, 0), groups=v.shape[1])
    return kernel_1 @ (inverse @ (kernel_3 @ v)) + skip


@dataclass(frozen=True)
class Case:
    against: str
    n: int
    m: int
    dtype: torch.dtype
    backward: bool

    def calls(self) -> dict[str, Callable[[], object]]:
        """ "other" and "ours", the same problem every time."""
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
        """The error of ours; exits if it is too large for its time to count."""
        torch.manual_seed(0)
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
            if error > TOLERANCE[self.dtype]:  # is it the arithmetic?
                as_written = error_of(results(inputs, *sizes, "eager"), exact)
        if error > max(TOLERANCE[self.dtype], 1.5 * as_written):
            raise SystemExit(f"{self}: error {error:.1e}, no speed.")
        return error


def tensors(case: Case) -> list[Tensor]:
    """q, k, v, taps, and the output's gradient."""
    shape = (1, HEADS, case.n, DIM)
    made = [torch.randn(shape) for _ in range(3)]
    made += [torch.randn(HEADS, KERNEL) / 6, torch.randn(shape)]
    return [x.to(case.dtype).requires_grad_(case.backward and i < 4) for i, x in enumerate(made)]


def layers(n: int) -> tuple[torch.nn.Module, torch.nn.Module, Tensor]:
    """The layer of TransMIL: 8 heads of 64, M = 256, batch 1, with its projections; and a bag."""
    sizes = {"dim": 512, "dim_head": 64, "heads": 8, "num_landmarks": 256, "dropout": 0.1}
    theirs, ours = old.NystromAttention(**sizes).eval(), lucidrains.NystromAttention(**sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(1, n, 512)


def no_grad(layer: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: layer(x))


def results(inputs, grad: Tensor, m: int, backward: bool, backend: str) -> list[Tensor]:
    """The output and, if asked, the gradients of all inputs."""
    inputs = [x.detach().requires_grad_(backward) for x in inputs]
    options = {"num_landmarks": m, "conv_weight": (inputs[3:] or [None])[0], "backend": backend}
    output = nystrom_attention(*inputs[:3], **options)
    if not backward:
        return [output]
    return [output, *torch.autograd.grad(output, inputs, grad.to(output.dtype))]


def error_of(found: list[Tensor], exact: list[Tensor]) -> float:
    """Of the output, or a third of the worst gradient's, as the tests allow."""
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    return max([errors[0], *(x / 3 for x in errors[1:])])


def paired(case: Case, repeats: int) -> tuple[float, float, float]:
    """Median milliseconds of other and ours, and the median of their ratios, turn by turn."""
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
    others, own = times.values()
    ratio = statistics.median(a / b for a, b in zip(others, own, strict=True))
    return statistics.median(others), statistics.median(own), ratio


def contestant(case: Case, name: str, end: Connection) -> None:
    """A process that runs its call whenever told to, and answers with the milliseconds."""
    warnings.filterwarnings("ignore")
    call = case.calls()[name]
    while end.recv():
        time.sleep(0.1)  # the other's second thread waits busily at first
        call()  # caches are the other's still
        end.send(statistics.median(milliseconds(call) for _ in range(3)))


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def cases() -> Iterator[Case]:
    single, half = torch.float32, torch.bfloat16
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


def measure(case: Case, repeats: int) -> Result:
    error = case.check()
    return Result(
        case.against,
        case.n,
        case.m,
        str(case.dtype).removeprefix("torch."),
        "forward + backward" if case.backward else "forward",
        *paired(case, repeats),
        error,
        torch.__version__,
        platform.processor() or platform.machine(),
        torch.get_num_threads(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="plain PyTorch, nystrom-attention or exact")
    arguments = parser.parse_args()
    chosen = [c for c in cases() if arguments.only in (None, c.against)]
    results = [
        measure(case, arguments.repeats)
        for case in track(chosen, "measuring", console=Console(stderr=True))
    ]
    show(results)
    if arguments.only is None:  # a part would replace the whole
        write(results, RESULTS / "cpu.csv")


def write(results: list[Result], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in fields(Result))
        writer.writerows(
            [f"{x:.4g}" if isinstance(x, float) else x for x in astuple(r)] for r in results
        )
    print(f"written to {path}")


def show(results: list[Result]) -> None:
    table = Table(title=f"ours against others, {torch.get_num_threads()} threads")
    for column in ("against", "N", "M", "dtype", "", "other ms", "ours ms", "ratio"):
        table.add_column(column, justify="right" if column not in ("against", "") else "left")
    for r in results:
        numbers = (f"{r.other_ms:.1f}", f"{r.ours_ms:.1f}", f"{r.ratio:.2f}")
        table.add_row(r.against, str(r.n), str(r.num_landmarks), r.dtype, r.direction, *numbers)
    Console().print(table)
