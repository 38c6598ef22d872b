"""Nyström attention of one sequence whose parts lie in several processes.

Read it as the operation itself, with four exchanges whose size is that of landmarks:

    Q~, K~   = segment means           their sums over the parts                    2 H M D numbers
    gathered = softmax(s Q~ Kᵀ) V      merged by the masses of the rows             H M (Dv + 2)
    context  = softmax(s Q~ K~ᵀ)⁺ · gathered      in every process, the same
    output   = softmax(s Q K~ᵀ) · context         of the queries at hand
               + conv(V)               K // 2 tokens from each neighbour
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from nystromer import functional
from nystromer.backends import eager
from nystromer.checks import (
    check_conv_weight,
    check_pinv,
    check_positive,
    check_query_key,
    check_value,
    softmax_scale,
)
from nystromer.distributed.call import Case, Whole, agreed
from nystromer.distributed.collectives import Group, group_of, largest, summed
from nystromer.landmarks import zero_padding
from nystromer.layout import batched, batched_mask, repeat_heads, unbatched
from nystromer.pinv import Pinv
from nystromer.precision import autocast_inputs, without_autocast

STEPS = {name: f"nystromer.backends.{name}.steps" for name in ("blocked", "native", "triton")}


@torch.compiler.disable
def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_landmarks: int = 64,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
    pinv_ridge: float | None = None,
    conv_weight: Tensor | None = None,
    backend: str = "auto",
    enable_gqa: bool = False,
    group: Group | None = None,
    mesh: DeviceMesh | None = None,
) -> Tensor:
    r"""`nystromer.nystrom_attention` of a sequence whose consecutive parts lie in the processes of
    a group, in the order of their ranks.

    Each process passes its part and gets the outputs of its queries. Parts may have any lengths,
    none too; masks may hide any of their tokens. The result is that of the whole sequence in one
    process, up to rounding, and so are the gradients. The processes exchange, for each sequence,
    H M (2 D + Dv + 2) numbers and K // 2 tokens to each side, whatever the length; the backward
    H M (2 D + Dv) numbers and the same tokens.

    What every process holds alike, here `conv_weight`, gets the gradient of its own part: sum it
    over the group, as for every parameter of a model whose sequences are cut.

    A group of one process calls the plain operation. In a model that torch.compile compiles, this
    call is a break of the graph.

    Args:
        query, key, value: Of this part, [B, H, Nq, D], [B, H, Nk, D], [B, H, Nk, Dv].
        mask, query_mask: Of this part, bool [B, Nk] and [B, Nq]; None means that all its tokens are
            real. query_mask is mask if in every process Nq = Nk.
        num_landmarks, scale, pinv_iterations, pinv_init, pinv_ridge, backend, enable_gqa: As
            `nystromer.nystrom_attention`; the same in every process.
        conv_weight: [H, K], the same in every process.
        group: The processes that share the sequence; None means all.
        mesh: A mesh of one dimension in place of the group.

    Returns:
        Of this part, [B, H, Nq, Dv], dtype of `value`.

    Raises:
        TypeError, ValueError, NotImplementedError: As `nystromer.nystrom_attention`. If one process
            raises, all do; ValueError also if the parts disagree in sizes, dtypes or settings.
        RuntimeError: If torch.distributed was not started, or a process has ended or does not
            answer.

    Example:
        >>> import nystromer.distributed as parallel
        >>> output = parallel.nystrom_attention(q, k, v, num_landmarks=64)  # doctest: +SKIP
    """
    group = group_of(group, mesh)
    settings: dict[str, Any] = {
        "num_landmarks": num_landmarks,
        "mask": mask,
        "query_mask": query_mask,
        "scale": scale,
        "pinv_iterations": pinv_iterations,
        "pinv_init": pinv_init,
        "pinv_ridge": pinv_ridge,
        "conv_weight": conv_weight,
        "backend": backend,
        "enable_gqa": enable_gqa,
    }
    if dist.get_world_size(group) == 1:
        return functional.nystrom_attention(query, key, value, **settings)
    checked: Callable[[], Case] = lambda: checked_case(query, key, value, **settings)  # noqa: E731
    case, whole = agreed(checked, device_of(query), group)
    with without_autocast(case.query):
        return unbatched(_attention(case, whole, group), query)


def checked_case(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_landmarks: int,
    mask: Tensor | None,
    query_mask: Tensor | None,
    scale: float | None,
    pinv_iterations: int,
    pinv_init: str,
    pinv_ridge: float | None,
    conv_weight: Tensor | None,
    backend: str,
    enable_gqa: bool,
    rows: int = 0,
) -> Case:
    """What one process can check by itself."""
    q, k, v = batched(query=query, key=key, value=value)
    mask = batched_mask("mask", mask, key)
    query_mask = batched_mask("query_mask", query_mask, query)
    q, k, v, conv_weight = autocast_inputs(q, k, v, conv_weight)
    if enable_gqa:
        k, v = repeat_heads(k, "key", q), repeat_heads(v, "value", q)
    check_query_key(q, k)
    check_value(k, v)
    check_positive("num_landmarks", num_landmarks)
    check_pinv(pinv_iterations, pinv_init, pinv_ridge)
    check_conv_weight(conv_weight, q, k)
    chosen = functional.choose_backend(backend, q, k, v, num_landmarks)
    return Case(
        q,
        k,
        v,
        mask,
        query_mask,
        num_landmarks,
        softmax_scale(scale, q),
        Pinv(pinv_iterations, pinv_init, pinv_ridge),
        conv_weight,
        chosen.__name__.rpartition(".")[2],
        rows,
    )


def of_sequences(flags: list[bool], device: torch.device) -> Tensor:
    """A flag of each sequence as bool [B, 1, 1, 1]."""
    return torch.tensor(flags, dtype=torch.bool, device=device).view(-1, 1, 1, 1)


def device_of(query: Any) -> torch.device:
    return query.device if isinstance(query, Tensor) else torch.device("cpu")


def _attention(case: Case, whole: Whole, group: Group) -> Tensor:
    steps: Any = import_module(STEPS[case.backend]) if case.backend in STEPS else eager
    m, (q_tilde, k_tilde) = whole.num_landmarks, landmarks(case, whole, group)
    few_keys, few_queries = whole.keys.few(m), whole.queries.few(m)
    by_keys = of_sequences(few_keys, case.query.device)
    gathered = context = None
    if not all(few_keys):
        settings = (case.scale, whole.keys, group, steps)
        gathered = _Gather.apply(q_tilde, k_tilde.detach(), case.key, case.value, *settings)
        context = mixing(case, whole, q_tilde, k_tilde) @ gathered
    in_use = None
    if any(few_keys):  # Lemma 2: each key is a landmark, and its value the landmark's context
        own = summed(whole.keys.segment_sums(case.value, m), group)
        context = own if context is None else torch.where(by_keys, own, context)
        in_use = (whole.keys.sizes(m, case.query.device) > 0) | ~by_keys[:, 0, 0]
    mask = whole.queries.mask
    output = steps.scatter(case.query, k_tilde, context, in_use, mask, case.scale)
    if gathered is not None and any(few_queries):  # each query is a landmark, and has gathered all
        ids = whole.queries.own_landmarks(m).to(gathered.device)
        read = gathered.take_along_dim(ids[:, None, :, None], 2).to(output.dtype)
        if mask is not None:
            read = read.masked_fill(~mask[:, None, :, None], 0.0)
        by_queries = of_sequences(few_queries, case.query.device)
        output = torch.where(by_queries & ~by_keys, read, output)
    if case.conv_weight is not None:
        output = output + _convolution(case, whole, group)
    return output


def landmarks(case: Case, whole: Whole, group: Group) -> tuple[Tensor, Tensor]:
    """Q~ and K~ of the whole sequences, [B, H, M, D], the same in every process (eq. 16)."""
    m, device = whole.num_landmarks, case.query.device
    sides = ((whole.queries, case.query), (whole.keys, case.key))
    sums = summed(torch.stack([side.segment_sums(x, m) for side, x in sides]), group)
    sizes = torch.stack([side.sizes(m, device) for side, _ in sides])
    means = sums / sizes.clamp(min=1)[:, :, None, :, None]
    return means[0], means[1]


def mixing(case: Case, whole: Whole, q_tilde: Tensor, k_tilde: Tensor) -> Tensor:
    """kernel_2⁺ [B, H, M, M]; the identity for sequences of at most M tokens."""
    m = whole.num_landmarks
    exact = of_sequences(whole.exact, q_tilde.device)
    identity = torch.eye(m, dtype=q_tilde.dtype, device=q_tilde.device)
    kernel_2 = torch.softmax(case.scale * q_tilde @ k_tilde.mT, -1)
    kernel_2 = torch.where(exact, identity, kernel_2)
    return torch.where(exact, identity, case.pinv.of(kernel_2))


class _Gather(torch.autograd.Function):
    """softmax(s Q~ Kᵀ) V over the keys of all parts: each part's own, weighed by its masses."""

    @staticmethod
    def forward(
        ctx: Any,
        q_tilde: Tensor,
        k_tilde: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        keys: Any,
        group: Group,
        steps: Any,
    ) -> Tensor:
        q_tilde = q_tilde.contiguous()
        part, log2_mass = steps.gather(q_tilde, key, value, keys.mask, scale)
        empty = of_sequences([count == 0 for count in keys.counts[keys.rank]], key.device)
        part, log2_mass = part.masked_fill(empty, 0.0), log2_mass.masked_fill(empty, -torch.inf)
        top = largest(log2_mass, group)
        top = torch.where(top.isinf(), 0.0, top)  # no key anywhere
        share = (log2_mass - top).exp2()
        sums = summed(torch.cat([part * share, share], -1), group)
        mass = sums[..., -1:].clamp(min=torch.finfo(sums.dtype).tiny)
        gathered, log2_mass = sums[..., :-1] / mass, top + mass.log2()
        ctx.save_for_backward(q_tilde, k_tilde, key, value, gathered, log2_mass)
        ctx.settings = (scale, keys.mask, group, steps)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q_tilde, k_tilde, key, value, gathered, log2_mass = ctx.saved_tensors
        scale, mask, group, steps = ctx.settings
        grad = summed(grad, group)  # every process reads what was gathered
        mean = k_tilde.mean(2, keepdim=True)
        grads = steps.gather_backward(
            grad, q_tilde, key, value, mask, scale, gathered, log2_mass, mean
        )
        return grads[0], None, grads[1], grads[2], None, None, None, None


def _convolution(case: Case, whole: Whole, group: Group) -> Tensor:
    """The depthwise convolution of the values of this part and its neighbours, [B, H, N, Dv]."""
    taps, keys, n = case.conv_weight, whole.keys, case.value.shape[2]
    assert taps is not None
    value, before = keys.with_neighbours(case.value, taps.shape[1] // 2, group)
    mask = keys.mask
    if mask is not None:
        behind = value.shape[2] - before - n
        mask = torch.nn.functional.pad(mask, (before, behind), value=True)
    if case.backend == "eager":
        dtype = torch.promote_types(value.dtype, torch.float32)
        value = zero_padding(value.to(dtype), mask)
        result = eager.convolution(value, taps.to(dtype)).to(case.value.dtype)
    else:
        from nystromer.backends.blocked.steps import convolution

        result = convolution(value, taps, mask)
    result = result[:, :, before : before + n]
    mask = whole.queries.mask
    return result if mask is None else result.masked_fill(~mask[:, None, :, None], 0.0)
