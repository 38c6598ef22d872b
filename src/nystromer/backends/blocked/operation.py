"""The forward and the backward over a batch, as operations that autograd and torch.compile know."""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
from typing import NamedTuple

import torch
from torch import Tensor

from nystromer.backends.blocked.attention import gather, gather_backward, scatter, scatter_backward
from nystromer.backends.blocked.convolution import Convolution, ConvolutionBackward
from nystromer.backends.blocked.inverse import (
    apply_inverse,
    apply_inverse_backward,
    start_norm,
    start_norm_backward,
)
from nystromer.backends.blocked.pairs import Pair, make_pairs, nystrom_index
from nystromer.backends.blocked.sequences import Workspace
from nystromer.pinv import NORM_DIMS, Pinv, ridge_pinv, ridge_pinv_backward
from nystromer.precision import accumulation_dtype
from nystromer.registration import empty_as, make_differentiable, new_gradients, operation

ROWS_A_THREAD = 2048  # tokens times heads of a block: half a megabyte a table stays in cache
ROWS_OF_BFLOAT16 = 4096
ROWS_ELSEWHERE = 1 << 18


class Small(NamedTuple):
    """What stands between the two attentions, and all that the backward needs beside the inputs."""

    q_tilde: Tensor  # [B, H, M, D]
    k_tilde: Tensor  # [B, H, M, D]
    gathered: Tensor  # kernel_3 V  [B, H, M, Dv]
    context: Tensor  # kernel_2⁺ kernel_3 V  [B, H, M, Dv]
    log2_mass: Tensor  # log2 of the row sums of kernel_3  [B, H, M, 1]

    def of(self, b: int, pair: Pair) -> "Small":
        """Views of sequence b, of the landmarks it uses."""
        return Small(*(x[b, :, : pair.width] for x in self))


@operation("blocked_forward")
def blocked_forward(
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
    """The output, and the fields of `Small`."""
    pairs = make_pairs(query, key, mask, query_mask, num_landmarks)
    work = _workspace(query)
    output, small = _results(query, value, num_landmarks)
    for b, pair in enumerate(pairs):
        given = None
        if query_landmarks is not None and key_landmarks is not None:
            given = (query_landmarks[b], key_landmarks[b])
        _gather(pair, query[b], key[b], value[b], given, small.of(b, pair), scale, work)
    pinv = Pinv(pinv_iterations, pinv_init, pinv_ridge)
    _solve(small, nystrom_index(pairs), scale, pinv)
    for b, pair in enumerate(pairs):
        convolution = None
        if conv_weight is not None:
            taps = conv_weight.to(work.factor_dtype)
            convolution = Convolution(taps, value[b], pair.keys, work)
        _scatter(pair, query[b], small.of(b, pair), output[b], convolution, scale, work)
    return output, *small


def _gather(
    pair: Pair,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: tuple[Tensor, Tensor] | None,
    small: Small,
    scale: float,
    work: Workspace,
) -> None:
    """Fills in one sequence's landmarks and what they gather; with few keys, its whole context."""
    if pair.empty:
        return
    if pair.few_keys:
        small.k_tilde.copy_(pair.keys.tokens(key))
        small.context.copy_(pair.keys.tokens(value))
        return
    if pair.few_queries:
        small.q_tilde.copy_(pair.queries.tokens(query))
    elif given is not None:
        small.q_tilde.copy_(given[0])
        small.k_tilde.copy_(given[1])
    else:
        small.q_tilde.copy_(pair.queries.means(query, pair.num_landmarks))
        small.k_tilde.copy_(pair.keys.means(key, pair.num_landmarks))
    gathered, log2_mass = gather(small.q_tilde * scale, key, value, pair.keys, work)
    small.gathered.copy_(gathered)
    small.log2_mass.copy_(log2_mass)


def _scatter(
    pair: Pair,
    query: Tensor,
    small: Small,
    output: Tensor,
    convolution: Convolution | None,
    scale: float,
    work: Workspace,
) -> None:
    """Writes one sequence's output, [H, Nq, Dv]."""
    if pair.empty:
        output.zero_()
    elif pair.few_queries:
        output.zero_()
        pair.queries.put(output, small.gathered)
        if convolution is not None:
            convolution.add_to(output, pair.queries)
    else:
        pair.queries.clear_outside(output)
        landmarks = small.k_tilde * scale
        scatter(query, landmarks, small.context, pair.queries, output, convolution, work)


def _solve(small: Small, chosen: list[int] | slice | None, scale: float, pinv: Pinv) -> None:
    """context = kernel_2⁺ · gathered, of the sequences chosen."""
    if chosen is None:
        return
    gathered = small.gathered[chosen]
    kernel_2 = torch.softmax(scale * small.q_tilde[chosen] @ small.k_tilde[chosen].mT, -1)
    if pinv.ridge is not None:
        small.context[chosen] = ridge_pinv(kernel_2, pinv.ridge) @ gathered
    else:
        norm = start_norm(kernel_2, NORM_DIMS[pinv.init])
        small.context[chosen] = apply_inverse(kernel_2, norm, gathered, pinv.iterations)


@torch.library.register_fake("nystromer::blocked_forward")
def _(query, key, value, *rest):  # type: ignore[no-untyped-def]
    num_landmarks = rest[5]
    output, small = _results(query, value, num_landmarks)
    return output, *small


@operation("blocked_backward")
def blocked_backward(
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
    small = Small(q_tilde, k_tilde, gathered, context, log2_mass)
    grads = new_gradients(query, key, value, conv_weight, q_tilde)
    grad_query, grad_key, grad_value, grad_taps, grad_q_tilde, grad_k_tilde = grads
    grad_small = Small(grad_q_tilde, grad_k_tilde, *map(torch.zeros_like, small[2:]))
    pairs = make_pairs(query, key, mask, query_mask, q_tilde.shape[2])
    work = _workspace(query)
    for b, pair in enumerate(pairs):
        of_b = (small.of(b, pair), grad_small.of(b, pair))
        _scatter_backward(pair, query[b], grad_output[b], *of_b, grad_query[b], scale, work)
    pinv = Pinv(pinv_iterations, pinv_init, pinv_ridge)
    _solve_backward(small, grad_small, nystrom_index(pairs), scale, pinv)
    for b, pair in enumerate(pairs):
        convolution = None
        if conv_weight is not None:
            taps = conv_weight.to(work.factor_dtype)
            convolution = ConvolutionBackward(taps, grad_output[b], pair.queries, work)
        tokens, grad_tokens = (key[b], value[b]), (grad_query[b], grad_key[b], grad_value[b])
        of_b = (small.of(b, pair), grad_small.of(b, pair))
        _gather_backward(pair, tokens, *of_b, grad_tokens, convolution, scale, work)
        if pair.nystrom and not landmarks_given:
            pair.queries.spread(grad_query[b], grad_q_tilde[b])
            pair.keys.spread(grad_key[b], grad_k_tilde[b])
        elif not pair.nystrom:  # landmarks from outside took no part
            grad_q_tilde[b].zero_()
            grad_k_tilde[b].zero_()
        if convolution is not None and not pair.empty:
            grad_taps += convolution.taps()
    return grads


def _scatter_backward(
    pair: Pair,
    query: Tensor,
    grad_output: Tensor,
    small: Small,
    grad: Small,
    grad_query: Tensor,
    scale: float,
    work: Workspace,
) -> None:
    """Gradients of `_scatter`: of the queries as they stand there, and of what they read."""
    if pair.empty:
        grad_query.zero_()
    elif pair.few_queries:
        grad.gathered.copy_(pair.queries.tokens(grad_output))
    else:
        pair.queries.clear_outside(grad_query)
        landmarks, queries = small.k_tilde * scale, pair.queries
        grad_landmarks, grad_context = scatter_backward(
            query, landmarks, small.context, queries, grad_output, grad_query, work
        )
        grad.k_tilde.copy_(grad_landmarks * scale)
        grad.context.copy_(grad_context)


def _gather_backward(
    pair: Pair,
    tokens: tuple[Tensor, Tensor],
    small: Small,
    grad: Small,
    grad_tokens: tuple[Tensor, Tensor, Tensor],
    convolution: ConvolutionBackward | None,
    scale: float,
    work: Workspace,
) -> None:
    """Gradients of `_gather` for keys and values, with the convolution's, and for few queries."""
    (key, value), (grad_query, grad_key, grad_value) = tokens, grad_tokens
    if pair.empty or pair.few_keys:
        grad_key.zero_()
        grad_value.zero_()
    if pair.empty:
        return
    if pair.few_keys:
        pair.keys.put(grad_key, grad.k_tilde)
        pair.keys.put(grad_value, grad.context)
        if convolution is not None:
            convolution.add_to(grad_value, value, pair.keys)
        return
    pair.keys.clear_outside(grad_key)
    pair.keys.clear_outside(grad_value)
    grad_landmarks = gather_backward(
        small.q_tilde * scale,
        key,
        value,
        pair.keys,
        small.gathered,
        small.log2_mass,
        grad.gathered,
        grad_key,
        grad_value,
        convolution,
        work,
    )
    grad.q_tilde.add_(grad_landmarks * scale)
    if pair.few_queries:
        grad_query.zero_()
        pair.queries.put(grad_query, grad.q_tilde)


def _solve_backward(
    small: Small, grad: Small, chosen: list[int] | slice | None, scale: float, pinv: Pinv
) -> None:
    """Gradients of `_solve`: sets those of gathered and q_tilde, adds to that of k_tilde."""
    if chosen is None:
        return
    q, k, gathered = (x[chosen] for x in small[:3])
    grad_context = grad.context[chosen]
    kernel_2 = torch.softmax(scale * q @ k.mT, -1)
    if pinv.ridge is not None:
        grad.gathered[chosen] = ridge_pinv(kernel_2, pinv.ridge).mT @ grad_context
        grad_kernel = ridge_pinv_backward(kernel_2, grad_context @ gathered.mT, pinv.ridge)
    else:
        dims = NORM_DIMS[pinv.init]
        norm = start_norm(kernel_2, dims)
        grad_kernel, grad_norm, grad.gathered[chosen] = apply_inverse_backward(
            kernel_2, norm, gathered, pinv.iterations, grad_context
        )
        grad_kernel += start_norm_backward(kernel_2, grad_norm, dims)
    grad_logits = kernel_2 * (grad_kernel - (grad_kernel * kernel_2).sum(-1, keepdim=True))
    grad.q_tilde[chosen] = scale * grad_logits @ k
    grad.k_tilde[chosen] += scale * grad_logits.mT @ q


make_differentiable("blocked")


def _workspace(query: Tensor) -> Workspace:
    rows = ROWS_OF_BFLOAT16 if query.dtype == torch.bfloat16 else ROWS_A_THREAD
    rows *= torch.get_num_threads()
    if query.device.type != "cpu":
        rows = ROWS_ELSEWHERE
    block = max(64, rows // max(1, query.shape[1]) // 64 * 64)
    return Workspace(query, accumulation_dtype(query.dtype), block)


def _results(query: Tensor, value: Tensor, num_landmarks: int) -> tuple[Tensor, Small]:
    dtype = accumulation_dtype(query.dtype)

    def small(dim: int) -> Tensor:
        return query.new_zeros(*query.shape[:2], num_landmarks, dim, dtype=dtype)

    dim, value_dim = query.shape[3], value.shape[3]
    dims = (dim, dim, value_dim, value_dim, 1)  # of the fields of `Small`
    return empty_as(query, value_dim), Small(*map(small, dims))
