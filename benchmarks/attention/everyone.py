"""Nyström attention against every other implementation, and against other attentions.

    python -m benchmarks attention.everyone [--only linformer] [--fresh] [--quick] [--output FILE]

All get the same query, key and value as projections leave them, [1, N, 512] for 8 heads of 64, and
return [1, N, 512]: projections are taken out of layers that have them. The two of a row run in turn
in one process; the memory of each is measured in a process of its own. Those that compute the same
function have to agree with it in float64 first, and so do we. Rows that results/everyone.csv has
are kept (--fresh measures them again), so that a run can be stopped and go on.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import common
from benchmarks.attention.cpu import plain
from nystromer import bench, nystrom_attention
from nystromer.bench import worker

HEADS, DIM, TAPS = 8, 64, 33
REPEATS, TIME_LIMIT = 5, 6.0
EXACT_LIMIT = 16_384  # tokens; exact attention over four times as many takes a minute a run

SAME, ESTIMATE, OTHER = "the same function", "an estimate of exact attention", "another function"
OTHERS = {  # what it computes, the package it comes from
    "plain PyTorch": (SAME, "torch"),
    "nystrom-attention": (SAME, "nystrom-attention"),
    "transformers": (SAME, "transformers"),
    "exact": ("exact attention", "torch"),
    "performer": (ESTIMATE, "performer-pytorch"),
    "linear-attention": (OTHER, "linear-attention-transformer"),
    "linformer": (OTHER, "linformer"),
}
DIRECTIONS = ("forward", "forward + backward")
PACKAGES = [  # imported once; one that is missing fails where it is used
    "nystrom_attention",
    "performer_pytorch",
    "linear_attention_transformer",
    "transformers.models.nystromformer.modeling_nystromformer",
]
common.PROCESSES.set_forkserver_preload([*common.IMPORTED_ONCE, *PACKAGES])


@dataclass(frozen=True)
class Case:
    """M: landmarks; random features for performer, learned mixtures of keys for linformer."""

    against: str
    n: int
    num_landmarks: int
    dtype: str
    direction: str

    @property
    def backward(self) -> bool:
        return self.direction != "forward"

    @property
    def same(self) -> bool:
        return OTHERS[self.against][0] == SAME


def cases(quick: bool = False) -> Iterable[Case]:
    shapes = [(n, m) for m in (64, 256) for n in (1024, 4096, 16_384, 65_536) if n * m <= 2**22]
    for n, m in [(256, 16)] if quick else shapes:
        for dtype in ("float32", "bfloat16"):
            for direction in DIRECTIONS[quick:]:
                for name in OTHERS:
                    if name != "exact" or n <= EXACT_LIMIT:
                        yield Case(name, n, m, dtype, direction)


class Between(nn.Module):
    """attend(q, k, v, *parameters) of [1, H, N, D] between projections: [1, N, E] in and out."""

    def __init__(self, attend: Callable[..., Tensor], *parameters: Tensor) -> None:
        super().__init__()
        self.attend, self.own = attend, nn.ParameterList(parameters)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (x.unflatten(2, (HEADS, DIM)).transpose(1, 2) for x in (q, k, v))
        return self.attend(*heads, *self.own).transpose(1, 2).flatten(2)


class Given(nn.Module):
    """In place of a projection: gives the value that was laid down."""

    def forward(self, _: Tensor) -> Any:
        return self.value


class Unprojected(nn.Module):
    """A layer with those projections (three, or one fused) replaced by what they would give."""

    def __init__(self, layer: nn.Module, *projections: str) -> None:
        super().__init__()
        self.layer, self.given = layer, [Given() for _ in projections]
        for name, given in zip(projections, self.given, strict=True):
            setattr(layer, name, given)
        if hasattr(layer, "to_out"):
            layer.to_out = nn.Identity()

    def forward(self, *qkv: Tensor) -> Tensor:
        fused = len(self.given) == 1
        values = [SimpleNamespace(chunk=lambda *_, **__: qkv)] if fused else qkv
        for given, value in zip(self.given, values, strict=True):
            given.value = value
        output = self.layer(qkv[0])
        return output[0] if isinstance(output, tuple) else output


def ours(case: Case, taps: Tensor, backend: str = "auto") -> nn.Module:
    """The function that a row's other computes, if that is Nyström attention; else without taps."""
    init = "matrix" if case.against == "plain PyTorch" else "sequence"

    def attend(q: Tensor, k: Tensor, v: Tensor, conv_weight: Tensor | None = None) -> Tensor:
        settings = {"num_landmarks": case.num_landmarks, "pinv_init": init, "backend": backend}
        return nystrom_attention(q, k, v, conv_weight=conv_weight, **settings)

    return Between(attend, taps) if case.same else Between(attend)


def other(case: Case, taps: Tensor) -> nn.Module:
    n, m, width = case.n, case.num_landmarks, HEADS * DIM
    filters = nn.Parameter(taps[:, None, :, None])  # a Conv2d's
    match case.against:
        case "plain PyTorch":
            return Between(lambda q, k, v, taps: plain(q, k, v, m, taps), taps)
        case "nystrom-attention":
            from nystrom_attention import NystromAttention

            layer = NystromAttention(width, dim_head=DIM, heads=HEADS, num_landmarks=m)
            layer.res_conv.weight = filters
            return Unprojected(layer, "to_qkv")
        case "transformers":
            from transformers import NystromformerConfig
            from transformers.models.nystromformer import modeling_nystromformer

            config = NystromformerConfig(
                hidden_size=width,
                num_attention_heads=HEADS,
                num_landmarks=m,
                segment_means_seq_len=n,  # as m, it would be exact attention
                conv_kernel_size=TAPS,
                attention_probs_dropout_prob=0.0,
            )
            layer = modeling_nystromformer.NystromformerSelfAttention(config)
            layer.conv.weight = filters
            return Unprojected(layer, "query", "key", "value")
        case "exact":
            return Between(F.scaled_dot_product_attention)
        case "performer":
            from performer_pytorch import FastAttention

            return Between(FastAttention(DIM, nb_features=m))
        case "linear-attention":
            from linear_attention_transformer.linear_attention_transformer import linear_attn

            return Between(linear_attn)
        case "linformer":
            from linformer import LinformerSelfAttention

            layer = LinformerSelfAttention(width, n, k=m, heads=HEADS)
            return Unprojected(layer, "to_q", "to_k", "to_v")
    raise ValueError(f"`against` must be one of {', '.join(OTHERS)}, got {case.against!r}.")


def prepare(case: Case) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Query, key, value, [1, N, E]; the convolution's taps; the gradient of the output."""
    warnings.filterwarnings("ignore")  # of the others, in a process of their own
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    tokens = worker.inputs(bench.Case("exact", case.n, heads=HEADS, head_dim=DIM))
    tokens = [x.transpose(1, 2).flatten(2).to(dtype).requires_grad_(case.backward) for x in tokens]
    taps = (torch.randn(HEADS, TAPS) / 6).to(dtype)
    return tokens, taps, torch.randn_like(tokens[0]) if case.backward else None


def timed(case: Case) -> dict[str, Any]:
    """All columns but memory. The first run of each is the one that is checked."""
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
    """What ours should give, as the paper writes it, in float64."""
    double = [x.detach().double().requires_grad_(case.backward) for x in tokens]
    eager = ours(case, taps.double(), backend="eager")
    return worker.results(eager, double, None if grad is None else grad.double())


def check(
    case: Case, results: list[tuple[Tensor, ...]], expected: tuple[Tensor, ...]
) -> dict[str, Any]:
    """How far the other, if it computes the same, and ours are off; a note where that is too far.

    The worse of the output and the gradients as one vector, which may be off by three times more.
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
    """Growth of resident memory in one run, over its inputs; the results included."""
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
    parser = common.options(__doc__.splitlines()[0], common.RESULTS / "everyone.csv")
    parser.add_argument("--only", choices=OTHERS, help="measure this one")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    arguments = parser.parse_args()
    chosen = [c for c in cases(arguments.quick) if arguments.only in (None, c.against)]
    for row in common.complete(arguments.output, chosen, measure, arguments.fresh):
        what = "{against:18} N {n:>6} M {num_landmarks:>3} {dtype:8} {direction:18}".format(**row)
        print(what, row["note"] or f"{row['ratio']}x ({row['other_ms']} / {row['ours_ms']} ms)")
