"""The forward and the backward over a batch, as operations for autograd and torch.compile.

A batch is [B, H, N, D] with masks, bool [B, N]. Packed sequences are [1, H, T, D], one behind the
other, and `mask` and `query_mask` are their bounds, int [S + 1]: sequence s has the tokens
bounds[s] ... bounds[s + 1] - 1. Both become a list of views, one for each sequence.
"""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from nystromer.backends.blocked.attention import gather, gather_backward, scatter, scatter_backward
from nystromer.backends.blocked.convolution import (
    Convolution,
    ConvolutionBackward,
    taps_gradient,
    toeplitz,
)
from nystromer.backends.blocked.pairs import Pair, make_pairs, nystrom_index
from nystromer.backends.blocked.sequences import Sequence, Workspace
from nystromer.checks import is_packed
from nystromer.pinv import Pinv
from nystromer.pinv_gradient import pinv_backward
from nystromer.precision import accumulation_dtype
from nystromer.registration import (
    empty_as,
    make_differentiable,
    new_gradients,
    operation,
    shapes_of,
)

ROWS_A_THREAD = 2048  # tokens of a block, of all its heads: half a megabyte a table stays in cache
ROWS_ELSEWHERE = 1 << 18


class Small(NamedTuple):
    """The small tensors between the two attentions; the backward needs them beside the inputs."""

    q_tilde: Tensor  # [B, H, M, D]
    k_tilde: Tensor  # [B, H, M, D]
    gathered: Tensor  # kernel_3 V  [B, H, M, Dv]
    context: Tensor  # kernel_2⁺ kernel_3 V  [B, H, M, Dv]
    log2_mass: Tensor  # log2 of the row sums of kernel_3  [B, H, M, 1]

    def of(self, b: int, pair: Pair) -> "Small":
        """Returns views of sequence b and of the landmarks that it uses."""
        return Small(*(x[b, :, : pair.width] for x in self))


class Part(NamedTuple):
    """Some heads of one sequence as views, or the gradients of such a part."""

    pair: Pair
    query: Tensor  # [H, Nq, D]
    key: Tensor  # [H, Nk, D]
    value: Tensor  # [H, Nk, Dv]
    output: Tensor  # [H, Nq, Dv]
    small: Small
    taps: Tensor | None  # as the matrix of `toeplitz`


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
    """Returns the output and the fields of `Small`."""
    pairs = make_pairs(query, key, mask, query_mask, num_landmarks)
    work = _workspace(query, pairs)
    output, small = _results(query, value, query_mask, num_landmarks)
    tokens = _sequences(pairs, (query, key, value, output), is_packed(mask))
    for b, (pair, (q, k, _, _)) in enumerate(zip(pairs, tokens, strict=True)):
        given = None
        if query_landmarks is not None and key_landmarks is not None:
            given = (query_landmarks[b], key_landmarks[b])
        _set_landmarks(pair, q, k, given, small.of(b, pair))
    taps = None if conv_weight is None else toeplitz(conv_weight.to(work.factor_dtype))
    parts = _parts(work, pairs, tokens, small, taps)
    for part in parts:
        _gather(part, scale, work)
    pinv = Pinv(pinv_iterations, pinv_init, pinv_ridge)
    _solve(small, nystrom_index(pairs), scale, pinv)
    for part in parts:
        _scatter(part, scale, work)
    return output, *small


def _sequences(
    pairs: list[Pair], tokens: tuple[Tensor, Tensor, Tensor, Tensor], packed: bool
) -> list[tuple[Tensor, ...]]:
    """Of every sequence its queries, keys, values and outputs, views [H, n, D].

    tokens: those of the batch, [B, H, N, D], or of packed sequences, [1, H, T, D].
    """
    queries, keys = [pair.queries for pair in pairs], [pair.keys for pair in pairs]

    def views(x: Tensor, of: list[Sequence]) -> Iterable[Tensor]:
        return x[0].split([sequence.length for sequence in of], 1) if packed else x

    sides = (queries, keys, keys, queries)
    return list(zip(*map(views, tokens, sides), strict=True))


def _parts(
    work: Workspace,
    pairs: list[Pair],
    tokens: list[tuple[Tensor, ...]],
    small: Small,
    taps: Tensor | None,
) -> list[Part]:
    """Cuts a batch into parts. tokens: of every sequence the fields of `Part`, [H, ...]."""
    parts = []
    for b, pair in enumerate(pairs):
        views = work.split(*tokens[b], *small.of(b, pair), taps)
        parts += [Part(pair, q, k, v, o, Small(*few), taps) for q, k, v, o, *few, taps in views]
    return parts


def _set_landmarks(
    pair: Pair, query: Tensor, key: Tensor, given: tuple[Tensor, Tensor] | None, small: Small
) -> None:
    if pair.empty:
        return
    if pair.few_keys:
        small.k_tilde.copy_(pair.keys.tokens(key))
    elif pair.few_queries:
        small.q_tilde.copy_(pair.queries.tokens(query))
    elif given is not None:
        small.q_tilde.copy_(given[0])
        small.k_tilde.copy_(given[1])
    else:
        small.q_tilde.copy_(pair.queries.means(query, pair.num_landmarks))
        small.k_tilde.copy_(pair.keys.means(key, pair.num_landmarks))


def _gather(part: Part, scale: float, work: Workspace) -> None:
    """Writes what the landmarks gather from the keys; with few keys, their whole context."""
    pair, _, key, value, _, small, _ = part
    if pair.empty:
        return
    if pair.few_keys:
        small.context.copy_(pair.keys.tokens(value))
        return
    gathered, log2_mass = gather(small.q_tilde * scale, key, value, pair.keys, work)
    small.gathered.copy_(gathered)
    small.log2_mass.copy_(log2_mass)


def _scatter(part: Part, scale: float, work: Workspace) -> None:
    """Writes the output: what the queries read, and the convolution."""
    pair, query, _, value, output, small, taps = part
    convolution = None if taps is None else Convolution(taps, value, pair.keys, work)
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
    """Writes context = kernel_2⁺ · gathered for the sequences chosen."""
    if chosen is None or not small.gathered.numel():
        return
    gathered = small.gathered[chosen]
    kernel_2 = torch.softmax(scale * small.q_tilde[chosen] @ small.k_tilde[chosen].mT, -1)
    small.context[chosen] = pinv.of(kernel_2) @ gathered


@shapes_of("blocked_forward")
def _(query, key, value, *rest):  # type: ignore[no-untyped-def]
    query_mask, num_landmarks = rest[1], rest[5]
    output, small = _results(query, value, query_mask, num_landmarks)
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
    """Returns gradients of query, key, value, conv_weight (empty if none), Q~ and K~."""
    small = Small(q_tilde, k_tilde, gathered, context, log2_mass)
    grads = new_gradients(query, key, value, conv_weight, q_tilde)
    grad_query, grad_key, grad_value, grad_taps, grad_q_tilde, grad_k_tilde = grads
    grad_small = Small(grad_q_tilde, grad_k_tilde, *map(torch.zeros_like, small[2:]))
    pairs = make_pairs(query, key, mask, query_mask, q_tilde.shape[2])
    work = _workspace(query, pairs)
    taps = table = None
    if conv_weight is not None:
        taps = toeplitz(conv_weight.flip(1).to(work.factor_dtype))
        table = work.zeros(*taps.shape)
    inputs = (query, key, value, grad_output)
    tokens = _sequences(pairs, inputs, is_packed(mask))
    grad_inputs = (grad_query, grad_key, grad_value, grad_output)
    grad_tokens = _sequences(pairs, grad_inputs, is_packed(mask))
    parts = _parts(work, pairs, tokens, small, taps)
    part_grads = _parts(work, pairs, grad_tokens, grad_small, table)
    both = list(zip(parts, part_grads, strict=True))
    for part, grad in both:
        _scatter_backward(part, grad, scale, work)
    pinv = Pinv(pinv_iterations, pinv_init, pinv_ridge)
    _solve_backward(small, grad_small, nystrom_index(pairs), scale, pinv)
    for part, grad in both:
        _gather_backward(part, grad, scale, work)
        pair = part.pair
        if pair.nystrom and not landmarks_given:
            pair.queries.spread(grad.query, grad.small.q_tilde)
            pair.keys.spread(grad.key, grad.small.k_tilde)
        elif not pair.nystrom:  # landmarks from outside took no part
            grad.small.q_tilde.zero_()
            grad.small.k_tilde.zero_()
    if table is not None:
        grad_taps += taps_gradient(table)
    return grads


def _scatter_backward(part: Part, grad_part: Part, scale: float, work: Workspace) -> None:
    """Writes the gradients of `_scatter`: of the queries, the landmark keys and the context."""
    pair, query, small = part.pair, part.query, part.small
    grad_query, grad_output, grad = grad_part.query, grad_part.output, grad_part.small
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


def _gather_backward(part: Part, grad_part: Part, scale: float, work: Workspace) -> None:
    """Writes the gradients of `_gather` for keys and values, with those of the convolution."""
    pair, _, key, value, _, small, taps = part
    _, grad_query, grad_key, grad_value, grad_output, grad, grad_taps = grad_part
    convolution = None
    if taps is not None and grad_taps is not None:
        reversed_taps = Convolution(taps, grad_output, pair.queries, work)
        convolution = ConvolutionBackward(reversed_taps, grad_taps)
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
    """Writes the gradients of `_solve`: of gathered and q_tilde, and adds to that of k_tilde."""
    if chosen is None or not small.gathered.numel():
        return
    q, k, gathered = (x[chosen] for x in small[:3])
    grad_context = grad.context[chosen]
    kernel_2 = torch.softmax(scale * q @ k.mT, -1)
    grad.gathered[chosen] = pinv.of(kernel_2).mT @ grad_context
    grad_kernel = pinv_backward(pinv, kernel_2, grad_context @ gathered.mT)
    grad_logits = kernel_2 * (grad_kernel - (grad_kernel * kernel_2).sum(-1, keepdim=True))
    grad.q_tilde[chosen] = scale * grad_logits @ k
    grad.k_tilde[chosen] += scale * grad_logits.mT @ q


make_differentiable("blocked")


def _workspace(query: Tensor, pairs: list[Pair]) -> Workspace:
    return workspace(query, max((pair.queries.length for pair in pairs), default=0))


def workspace(tokens: Tensor, longest: int) -> Workspace:
    """Makes scratch memory for a block of tokens; of several heads where sequences are short."""
    on_cpu = tokens.device.type == "cpu"
    rows = ROWS_A_THREAD * torch.get_num_threads() if on_cpu else ROWS_ELSEWHERE
    heads = max(1, min(rows // max(1, longest), tokens.shape[1]))
    return Workspace(tokens, accumulation_dtype(tokens.dtype), heads, max(64, rows // heads))


def _results(
    query: Tensor, value: Tensor, query_mask: Tensor | None, num_landmarks: int
) -> tuple[Tensor, Small]:
    dtype = accumulation_dtype(query.dtype)
    count, heads = query.shape[:2]
    if query_mask is not None and is_packed(query_mask):
        count = query_mask.shape[0] - 1

    def small(dim: int) -> Tensor:
        return query.new_zeros(count, heads, num_landmarks, dim, dtype=dtype)

    dim, value_dim = query.shape[3], value.shape[3]
    dims = (dim, dim, value_dim, value_dim, 1)  # of the fields of `Small`
    return empty_as(query, value_dim), Small(*map(small, dims))
