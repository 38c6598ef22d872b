"""Shows whether the Triton kernels are right on this GPU, and how fast.

    python -m benchmarks attention.gpu [--repeats 30] [--only SHAPE] [--output FILE]

Takes five to ten minutes, a guess: no GPU has run it yet.

First every size, mask and dtype of a list is compared, output and gradients, with the equations in
float64 (not with --only); then the shapes of the table, each compared again before it is timed
beside plain PyTorch and SDPA, torch's exact attention: a row is printed only if its case agrees. A
case that fails says so and the others go on. Times are medians of CUDA events over inputs that
rotate through more than the cache holds. Writes results/gpu.csv after every row, unless --only.
"""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from benchmarks.attention import plain
from benchmarks.attention.gpu_shapes import CHECKED, TIMED, Shape, inputs
from benchmarks.common import DIRECTIONS, TOLERANCES
from nystromer import nystrom_attention

CACHED = 2**29  # bytes of inputs to rotate through: several times any cache
PATIENCE = 20_000  # ms that one median may take, down to 3 repeats


@dataclass(frozen=True)
class Row:
    """What was measured for one shape."""

    shape: str
    dtype: str
    direction: str
    triton_ms: float
    plain_ms: float  # the same equations in plain PyTorch
    sdpa_ms: float  # exact attention
    copy_fraction: float  # of the copy bandwidth: q twice, k, v and the output once, v again for K
    peak_mib: float  # that triton adds to its inputs
    error: float  # against float64
    copy_tb_per_s: float
    repeats: int
    device: str
    torch: str


def ours(shape: Shape, q, k, v, taps, mask, backend: str = "triton") -> Tensor:
    options = {"num_landmarks": shape.m, "mask": mask, "conv_weight": taps}
    return nystrom_attention(q, k, v, **options, backend=backend)


def written(shape: Shape, q, k, v, taps, mask) -> Tensor:
    return plain.plain(q, k, v, shape.m, taps)


def equations(shape: Shape, q, k, v, taps, mask) -> Tensor:
    return ours(shape, q, k, v, taps, mask, backend="eager")


def exact(shape: Shape, q, k, v, taps, mask) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def with_gradients(call: Callable[..., Tensor], shape: Shape, tensors, grad: Tensor):
    """Returns the output and the gradients of the tensors that require one."""
    leaves = [x for x in tensors if x is not None and x.requires_grad]
    output = call(shape, *tensors)
    if not leaves:
        return [output]
    return [output, *torch.autograd.grad(output, leaves, grad, allow_unused=True)]


def error_of(shape: Shape, dtype: str, device: str) -> float:
    """Returns how far ours is from the equations in float64, as common.error_of.

    Heads are independent, so of a large case the first, a middle and the last one are compared.
    """
    q, k, v, taps, mask = inputs(shape, dtype, device)
    # as a loss scale would: the gradients of queries go with 1/N, to what float16 cannot hold
    grad = torch.randn_like(v) * max(1, shape.n // 2**16)
    chosen = torch.tensor(sorted({0, shape.heads // 2, shape.heads - 1}), device=device)

    def heads(x: Tensor) -> Tensor:
        return x.detach().index_select(0 if x.dim() == 2 else 1, chosen).double()

    double = [None if x is None else heads(x).requires_grad_() for x in (q, k, v, taps)]
    single = [None if x is None else x.requires_grad_() for x in (q, k, v, taps)]
    got = with_gradients(ours, shape, (*single, mask), grad)
    expected = with_gradients(equations, shape, (*double, mask), heads(grad))
    return common.error_of([heads(x) for x in got], expected)


def agreed_error(shape: Shape, dtype: str, device: str) -> float | None:
    """Prints the error of a case, and returns it if it is within the tolerance."""
    try:
        error = error_of(shape, dtype, device)
    except Exception:  # the other cases have something to say all the same
        traceback.print_exc()
        print(f"FAILS: {shape} {dtype}", flush=True)
        return None
    agreed = error < TOLERANCES[dtype]  # False for NaN
    print(f"{'agrees' if agreed else 'DISAGREES'}: {shape} {dtype}, error {error:.1e}", flush=True)
    return error if agreed else None


def median_ms(call: Callable[[int], object], repeats: int) -> tuple[float, int]:
    """Returns the median time by CUDA events and the repeats, fewer where PATIENCE ends."""

    def once(i: int) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(i)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    warm = [once(i) for i in range(3)]
    repeats = max(3, min(repeats, int(PATIENCE / max(warm[1:]))))
    return statistics.median(once(i) for i in range(repeats)), repeats


def copy_bandwidth() -> float:
    """Measures how many bytes a millisecond are read and written when a tensor is copied."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda i: target.copy_(source), 30)[0]


def least_bytes(shape: Shape, backward: bool) -> int:
    """Returns the bytes that have to be read and written in half precision.

    Forward: q twice, k, v, the output, and v again for the convolution. Backward: the same again,
    the gradient of the output, and three gradients written.
    """
    passes = 5 + (shape.kernel > 0)
    passes += (8 + (shape.kernel > 0)) if backward else 0
    return 2 * passes * shape.batch * shape.heads * shape.n * shape.dim


def rows_of(shape: Shape, error: float, bandwidth: float, repeats: int) -> Iterator[Row]:
    """Times a shape, forward and with the backward."""
    dtype = "float16"
    torch.cuda.empty_cache()
    grad = torch.randn_like(inputs(shape, dtype, "cuda")[2])
    size = 6 * shape.batch * shape.heads * shape.n * shape.dim
    sets = [inputs(shape, dtype, "cuda", seed) for seed in range(1 + CACHED // size)]
    for backward in (False, True):
        for tensors in sets:
            for x in tensors:
                if x is not None and x.is_floating_point():
                    x.requires_grad_(backward)

        def timed(
            call: Callable[..., Tensor], backward: bool = backward
        ) -> tuple[float, int, float]:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.set_grad_enabled(backward):
                time, count = median_ms(
                    lambda i: with_gradients(call, shape, sets[i % len(sets)], grad), repeats
                )
            return time, count, (torch.cuda.max_memory_allocated() - before) / 2**20

        time, count, peak = timed(ours)
        yield Row(
            str(shape),
            dtype,
            DIRECTIONS[backward],
            time,
            timed(written)[0],
            timed(exact)[0],
            least_bytes(shape, backward) / time / bandwidth,
            peak,
            error,
            bandwidth / 1e9,
            count,
            torch.cuda.get_device_name(),
            torch.__version__,
        )


def main() -> int:
    parser = common.command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=30, help="runs of which the median counts")
    parser.add_argument("--only", help="a part of the shape's name, such as N1024")
    parser.add_argument("--output", type=Path, default=common.RESULTS / "gpu.csv")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("attention.gpu needs a GPU, got none; on a CPU use attention.cpu.")
        return 2
    checked = [] if arguments.only else CHECKED
    errors = [agreed_error(shape, dtype, "cuda") for dtype in TOLERANCES for shape in checked]
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copies at {bandwidth / 1e9:.2f} TB/s")
    found = []
    for shape in TIMED:
        if arguments.only is None or arguments.only in str(shape):
            error = agreed_error(shape, "float16", "cuda")
            errors.append(error)
            if error is None:
                continue
            for row in rows_of(shape, error, bandwidth, arguments.repeats):
                found.append(asdict(row))
                show(row)
                if arguments.only is None:  # a part would replace the whole
                    common.write(found, arguments.output)
    return 1 if None in errors else 0


def show(row: Row) -> None:
    print(
        f"{row.shape:32s} {row.direction:18s} triton {row.triton_ms:8.3f} ms, "
        f"plain {row.plain_ms / row.triton_ms:5.1f}x, SDPA {row.sdpa_ms / row.triton_ms:7.2f}x, "
        f"{100 * row.copy_fraction:3.0f} % of copying, {row.peak_mib:,.0f} MiB",
        flush=True,
    )
