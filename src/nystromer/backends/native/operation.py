"""The forward and the backward of the library, as operations of autograd and torch.compile.

A batch is one call. Packed sequences, [1, H, T, D] with bounds, int [S + 1], for a mask, are a call
each on views. Tensors here are only allocated: torch's own loops over large ones would hang in a
forked child.
"""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nystromer.backends.native import library
from nystromer.checks import is_packed, packed_lengths
from nystromer.pinv import NORM_DIMS
from nystromer.registration import empty_as, make_differentiable, operation, shapes_of

INITS = {init: i for i, init in enumerate(NORM_DIMS)}  # `Norms` in source/call.h


@operation("native_forward")
def native_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    conv_weight: Tensor | None,
    query_landmarks: Tensor | None,
    key_landmarks: Tensor | None,
    num_landmarks: int,
    scale: float,
    pinv_iterations: int,
    pinv_init: str,
    pinv_ridge: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, and what stands between the two attentions, in float32, [B, H, M, .]: Q~, K~,
    gathered = kernel_3 V, context = kernel_2⁺ kernel_3 V, log2 of the row sums of kernel_3."""
    results = _results(query, value, query_mask, num_landmarks)
    output, *small = results
    if query_landmarks is not None and key_landmarks is not None:
        small[0].copy_(query_landmarks)
        small[1].copy_(key_landmarks)
    taps = None if conv_weight is None else conv_weight.float().contiguous()
    pinv = (scale, pinv_iterations, pinv_init, pinv_ridge)
    for part in _parts(mask, query_mask, (query, output), (key, value), small):
        (q, o), (k, v), few, masks = part
        call = call_for(q, k, v, masks, o, few, taps, pinv)
        call.landmarks_given = query_landmarks is not None
        library.run("forward", call)
    return results


@shapes_of("native_forward")
def _(query, key, value, *rest):  # type: ignore[no-untyped-def]
    return _results(query, value, rest[1], rest[5])


@operation("native_backward")
def native_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    conv_weight: Tensor | None,
    q_tilde: Tensor,
    k_tilde: Tensor,
    gathered: Tensor,
    context: Tensor,
    log2_mass: Tensor,
    landmarks_given: bool,
    scale: float,
    pinv_iterations: int,
    pinv_init: str,
    pinv_ridge: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, conv_weight (empty if none), Q~ and K~."""
    small = [x.contiguous() for x in (q_tilde, k_tilde, gathered, context, log2_mass)]
    taps = None if conv_weight is None else conv_weight.float().contiguous()
    pinv = (scale, pinv_iterations, pinv_init, pinv_ridge)
    grad_query, grad_key, grad_value = (empty_as(x, x.shape[3]) for x in (query, key, value))
    grad_q_tilde, grad_k_tilde = torch.empty_like(small[0]), torch.empty_like(small[1])
    # of bfloat16 taps too, summed in float32
    grad_taps = q_tilde.new_zeros((0,) if conv_weight is None else conv_weight.shape)
    of_queries = (query, grad_output, grad_query)
    of_keys = (key, value, grad_key, grad_value)
    for part in _parts(mask, query_mask, of_queries, of_keys, [*small, grad_q_tilde, grad_k_tilde]):
        (q, g, grad_q), (k, v, grad_k, grad_v), (*few, grad_few_q, grad_few_k), masks = part
        call = call_for(q, k, v, masks, g, few, taps, pinv)
        call.landmarks_given = landmarks_given
        call.grad_query, call.grad_key, call.grad_value = map(
            library.tensor, (grad_q, grad_k, grad_v)
        )
        of_part = torch.empty_like(grad_taps)
        call.grad_conv_weight = of_part.data_ptr()
        call.grad_q_tilde, call.grad_k_tilde = grad_few_q.data_ptr(), grad_few_k.data_ptr()
        library.run("backward", call)
        grad_taps += of_part
    return grad_query, grad_key, grad_value, grad_taps, grad_q_tilde, grad_k_tilde


make_differentiable("native")


def _results(
    query: Tensor, value: Tensor, query_mask: Tensor | None, num_landmarks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    count, heads = query.shape[:2]
    if query_mask is not None and is_packed(query_mask):
        count = query_mask.shape[0] - 1

    def small(dim: int) -> Tensor:
        return query.new_empty(count, heads, num_landmarks, dim, dtype=torch.float32)

    dim, value_dim = query.shape[3], value.shape[3]
    output = empty_as(query, value_dim)
    return output, small(dim), small(dim), small(value_dim), small(value_dim), small(1)


def _parts(
    mask: Tensor | None,
    query_mask: Tensor | None,
    of_queries: tuple[Tensor, ...],
    of_keys: tuple[Tensor, ...],
    small: list[Tensor],
) -> Iterator[tuple[Any, ...]]:
    """Gives what one call works on: the whole batch with its masks, or each packed sequence."""
    if mask is None or query_mask is None or not is_packed(mask):
        yield of_queries, of_keys, small, (mask, query_mask)
        return
    lengths = (
        packed_lengths("cu_seqlens", bounds, tokens[0].shape[2])
        for bounds, tokens in ((query_mask, of_queries), (mask, of_keys))
    )
    queries, keys = (
        zip(*(x.split(of, 2) for x in tokens), strict=True)
        for tokens, of in zip((of_queries, of_keys), lengths, strict=True)
    )
    for i, (of_query, of_key) in enumerate(zip(queries, keys, strict=True)):
        yield of_query, of_key, [x[i : i + 1] for x in small], (None, None)


def call_for(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    output: Tensor,
    small: Sequence[Tensor],
    taps: Tensor | None,
    pinv: tuple[float, int, str, float | None],
) -> library.Call:
    """masks: of keys and of queries. output: to be written, or its gradient. small: what stands
    between the attentions. taps: [H, K] in float32; it must outlive the call, as all must."""
    call = library.Call()
    call.batch, call.heads, call.queries, call.dim = query.shape
    call.keys, call.value_dim = value.shape[2:]
    call.landmarks = small[0].shape[2]
    call.threads = torch.get_num_threads()
    call.bfloat16 = query.dtype == torch.bfloat16
    call.key_mask, call.query_mask = map(library.mask, masks)
    call.query, call.key, call.value, call.output = map(library.tensor, (query, key, value, output))
    call.q_tilde, call.k_tilde, call.gathered, call.context, call.log2_mass = (
        x.data_ptr() for x in small
    )
    call.scale, call.pinv_iterations, init, ridge = pinv
    call.pinv_init = INITS[init]
    call.pinv_ridge = -1.0 if ridge is None else ridge
    if taps is not None:
        call.taps, call.conv_weight = taps.shape[1], taps.data_ptr()
    return call
