"""Measures one case in this process: `python -m nystromer.bench.worker '{"case": {...}, ...}'`."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nystromer.bench import Case
from nystromer.functional import nystrom_attention
from nystromer.modules import NystromAttention

LAYERS = ("module", "nystrom-attention")
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2}
SAMPLE = 256  # queries whose exact attention is computed
WARM_UP = 128  # tokens that load libraries and start threads

Attend = Callable[..., Tensor]


def run(case: Case, repeats: int, time_limit: float) -> dict[str, float | int | str | None]:
    """Measures a case, and returns the numbers of its `Row`."""
    attend, tokens = method(case), inputs(case)
    grad = torch.randn_like(tokens[-1]) if case.backward else None
    few = [x[..., :WARM_UP, :] for x in tokens]
    results(attend, few, None if grad is None else grad[..., :WARM_UP, :])

    reset_peak()
    before = peak_bytes()
    measured = results(attend, tokens, grad)
    peak = peak_bytes() - before
    times: list[float] = []
    while len(times) < repeats and sum(times) < time_limit:
        start = time.perf_counter()
        results(attend, tokens, grad)
        times.append(time.perf_counter() - start)

    wrong = "" if case.method == "exact" else disagreement(case, attend, tokens, grad, measured)
    return {
        "seconds": None if wrong else statistics.median(times),
        "peak_bytes": peak,
        "error": None if case.method in LAYERS else error_to_exact(measured[0], tokens),
        "note": wrong,
    }


def method(case: Case) -> Attend:
    """Returns the function or the layer that is measured."""
    torch.manual_seed(0)
    if case.method == "exact":
        return F.scaled_dot_product_attention
    if case.method in ("eager", "blocked", "native"):
        return partial(nystrom_attention, num_landmarks=case.num_landmarks, backend=case.method)
    dim, m = case.heads * case.head_dim, case.num_landmarks
    layer: nn.Module
    if case.method == "module":
        layer = NystromAttention(dim, case.heads, num_landmarks=m, conv_kernel_size=33)
    else:
        from nystrom_attention import NystromAttention as Peer

        layer = Peer(dim, dim_head=case.head_dim, heads=case.heads, num_landmarks=m)
    return layer.to(getattr(torch, case.dtype))


def inputs(case: Case) -> list[Tensor]:
    """Makes query, key and value, [1, H, N, D], the same for all methods; for a layer, [1, N, H D].

    Four features that drift, a new value every 32 tokens, seen through D dimensions with noise: a
    sequence that says more the longer it gets, so that M landmarks are ever fewer for it.
    """
    heads, n, dim = case.heads, case.n, case.head_dim
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    drift = F.interpolate(normal(heads, 4, n // 32 + 2), size=n, mode="linear").mT  # [H, N, 4]
    seen = drift @ normal(heads, 4, dim) / 2
    dtype = getattr(torch, case.dtype)
    tokens = [(seen + 0.3 * normal(heads, n, dim))[None].to(dtype) for _ in range(3)]
    if case.method in LAYERS:
        tokens = [tokens[0].transpose(1, 2).flatten(2)]
    return [x.requires_grad_(case.backward) for x in tokens]


def results(attend: Attend, tokens: list[Tensor], grad: Tensor | None) -> tuple[Tensor, ...]:
    """Returns the output, and with `grad` the gradients of tokens and parameters, tokens first.

    What took no part in the output has a gradient of zero.
    """
    if grad is None:
        with torch.no_grad():
            return (attend(*tokens),)
    output = attend(*tokens)
    parameters = list(attend.parameters()) if isinstance(attend, nn.Module) else []
    inputs = [*tokens, *parameters]
    return output.detach(), *torch.autograd.grad(output, inputs, grad, materialize_grads=True)


def disagreement(
    case: Case,
    attend: Attend,
    tokens: list[Tensor],
    grad: Tensor | None,
    measured: tuple[Tensor, ...],
) -> str:
    """Says why the results are not those of the float64 equations, or "".

    Gradients are compared as one vector, since that of a key's bias is zero but for rounding, and
    may be off by three times as much as the output.
    """
    equations: Attend
    if isinstance(attend, nn.Module):
        equations = layer = copy.deepcopy(attend).double()
        if isinstance(layer, NystromAttention):
            layer.backend = "eager"
        parts = [slice(None)]
    else:  # head by head: float64 tables of 262,144 tokens take a gigabyte each
        equations = partial(attend, backend="eager")
        parts = [slice(h, h + 1) for h in range(case.heads)]
    errors, norms = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for part in parts:
        double = [x[:, part].detach().double().requires_grad_(case.backward) for x in tokens]
        expected = results(equations, double, None if grad is None else grad[:, part].double())
        for i, (got, wanted) in enumerate(zip(measured, expected, strict=True)):
            is_gradient = min(i, 1)
            of_tokens = i <= len(tokens)
            errors[is_gradient] += ((got[:, part] if of_tokens else got) - wanted).square().sum()
            norms[is_gradient] += wanted.square().sum()
    off_by = (errors / norms.clamp(min=1e-300)).sqrt().tolist()
    allowed = TOLERANCES[case.dtype]
    for what, off, limit in zip(
        ("the output is", "the gradients are"), off_by, (allowed, 3 * allowed), strict=True
    ):
        if not off <= limit:
            return f"no time: {what} {off:.1e} off the float64 equations, over {limit:.0e}"
    return ""


def error_to_exact(output: Tensor, tokens: list[Tensor]) -> float:
    """Returns the relative error to exact attention in float64, over at most 256 queries."""
    n = tokens[0].shape[2]
    rows = torch.linspace(0, n - 1, min(n, SAMPLE)).long()
    heads = []
    for h in range(tokens[0].shape[1]):
        q, k, v = (x[:, h].detach().double() for x in tokens)
        heads.append(F.scaled_dot_product_attention(q[:, rows], k, v))
    return relative_error(output[:, :, rows], torch.stack(heads, 1))


def relative_error(x: Tensor, wanted: Tensor) -> float:
    """Returns the distance of x from what is wanted, as a share of that."""
    return float((x - wanted).norm() / wanted.norm())


def peak_bytes() -> int:
    """Returns the most memory that this process had resident since `reset_peak`.

    Linux's ru_maxrss starts at the size of the parent process, so it serves only elsewhere.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def reset_peak() -> None:
    """Begins to count the peak anew where the system allows it, and gives freed memory back."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    case = Case(**settings.pop("case"))
    print(json.dumps(run(case, **settings)))
