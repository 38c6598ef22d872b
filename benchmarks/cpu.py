"""Speed on this CPU against plain PyTorch, the old package, and exact attention.

    python benchmarks/cpu.py [--repeats 5] [--only nystrom-attention]

Every case is first checked against the equations in float64, gradients too; then ours and the other
run in turn, and the median of the paired ratios is reported. Where float32 itself is not accurate
(the gradients for M = 256 landmarks that are almost alike), the equations as written, in float32,
are the measure. Writes benchmarks/results/cpu.csv, unless --only.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import nystrom_attention as old
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

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


def operation_case(n: int, m: int, dtype: torch.dtype, backward: bool, against: str):
    """(other, ours, error of ours), the two as functions without arguments."""
    q, k, v = (torch.randn(1, HEADS, n, DIM).to(dtype).requires_grad_(backward) for _ in range(3))
    taps = (torch.randn(HEADS, KERNEL) / 6).to(dtype).requires_grad_(backward)
    grad = torch.randn(1, HEADS, n, DIM).to(dtype)

    def run(call: Callable[[], Tensor]) -> Callable[[], object]:
        if not backward:
            return torch.no_grad()(call)
        return lambda: torch.autograd.grad(call(), (q, k, v, taps), grad, allow_unused=True)

    own_taps = None if against == "exact" else taps

    def ours() -> Tensor:
        return nystrom_attention(q, k, v, num_landmarks=m, conv_weight=own_taps)

    def other() -> Tensor:
        if against == "exact":
            return F.scaled_dot_product_attention(q, k, v)
        return plain(q, k, v, m, taps)

    inputs = [x for x in (q, k, v, own_taps) if x is not None]
    exact = results([x.detach().double() for x in inputs], grad, m, backward, "eager")
    error = error_of(results(inputs, grad, m, backward, "auto"), exact)
    if error > TOLERANCE[dtype]:  # is it the arithmetic?
        as_written = error_of(results(inputs, grad, m, backward, "eager"), exact)
        if error > 1.5 * as_written:
            raise SystemExit(f"{against} N={n} M={m} {dtype}: error {error:.1e}, no speed.")
    return run(other), run(ours), error


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


def layer_case(n: int):
    """The layer of TransMIL: 8 heads of 64, M = 256, batch 1, with its projections."""
    sizes = {"dim": 512, "dim_head": 64, "heads": 8, "num_landmarks": 256, "dropout": 0.1}
    theirs, ours = old.NystromAttention(**sizes).eval(), lucidrains.NystromAttention(**sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, n, 512)
    with torch.no_grad():
        exact = lucidrains.NystromAttention(**sizes).eval().double()
        exact.load_state_dict(theirs.state_dict())
        expected = exact(x.double())
        error = error_of([ours(x)], [expected])
        if error > TOLERANCE[torch.float32]:
            raise SystemExit(f"nystrom-attention N={n}: error {error:.1e}, no speed.")
    return torch.no_grad()(lambda: theirs(x)), torch.no_grad()(lambda: ours(x)), error


def paired(other: Callable[[], object], ours: Callable[[], object], repeats: int):
    """Median milliseconds of each, and the median of their ratios, run in turn after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        pair = []
        for call in (other, ours):
            start = time.perf_counter()
            call()
            pair.append(1e3 * (time.perf_counter() - start))
        times.append(pair)
    others, own = zip(*times[1:], strict=True)
    ratio = statistics.median(a / b for a, b in zip(others, own, strict=True))
    return statistics.median(others), statistics.median(own), ratio


def cases():
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
            yield "plain PyTorch", n, m, dtype, backward
    for n in (1025, 10001):
        yield "nystrom-attention", n, 256, single, False
    for n in (1024, 8192):
        yield "exact", n, 64, single, False


def measure(against, n, m, dtype, backward, repeats) -> Result:
    torch.manual_seed(0)
    if against == "nystrom-attention":
        other, ours, error = layer_case(n)
    else:
        other, ours, error = operation_case(n, m, dtype, backward, against)
    return Result(
        against,
        n,
        m,
        str(dtype).removeprefix("torch."),
        "forward + backward" if backward else "forward",
        *paired(other, ours, repeats),
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
    chosen = [c for c in cases() if arguments.only in (None, c[0])]
    results = [
        measure(*case, repeats=arguments.repeats)
        for case in track(chosen, "measuring", console=Console(stderr=True))
    ]
    show(results)
    if arguments.only is None:  # a part would replace the whole
        write(results, Path(__file__).parent / "results" / "cpu.csv")


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


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
