"""The forward and the backward over a batch, as operations that autograd and torch.compile know."""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
from dataclasses import dataclass

import torch
from torch import Tensor

from nystromer.backends.blocked.attention import gather, gather_backward, scatter, scatter_backward
from nystromer.backends.blocked.convolution import Convolution, ConvolutionBackward
from nystromer.backends.blocked.sequences import Sequence, Workspace, sequences
from nystromer.landmarks import accumulation_dtype
from nystromer.pinv_product import pinv_product, pinv_product_backward

SCRATCH_ON_CPU = 1 << 18  # numbers in the widest scratch table: a megabyte, which stays in cache
SCRATCH_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Pair:
    """The query and the key tokens of one sequence, and what becomes of them.

    few_keys: L_k <= M, so the keys are their own landmarks and `scatter` alone is exact attention.
    few_queries: L_q <= M, so the queries are, and `gather` alone is. Lemma 2; neither: Nyström.
    """

    queries: Sequence
    keys: Sequence
    num_landmarks: int

    @property
    def empty(self) -> bool:
        return min(self.queries.length, self.keys.length) == 0

    @property
    def few_keys(self) -> bool:
        return not self.empty and self.keys.length <= self.num_landmarks

    @property
    def few_queries(self) -> bool:
        return not self.empty and not self.few_keys and self.queries.length <= self.num_landmarks

    @property
    def nystrom(self) -> bool:
        return min(self.queries.length, self.keys.length) > self.num_landmarks

    @property
    def width(self) -> int:
        """Landmarks in use."""
        if self.nystrom:
            return self.num_landmarks
        return self.keys.length if self.few_keys else self.queries.length


@torch.library.custom_op("nystromer::blocked_forward", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, and what the backward needs: Q~, K~, kernel_3 V, context, log of its row sums."""
    pairs = _pairs(query, key, mask, query_mask, num_landmarks)
    work = _workspace(query, value, num_landmarks)
    output, q_tilde, k_tilde, gathered, context, log_mass = _results(query, value, num_landmarks)

    for b, pair in enumerate(pairs):
        w = pair.width
        if pair.few_keys:
            k_tilde[b, :, :w] = pair.keys.tokens(key[b])
            context[b, :, :w] = pair.keys.tokens(value[b])
            continue
        if pair.few_queries:
            q_tilde[b, :, :w] = pair.queries.tokens(query[b])
        elif query_landmarks is not None and key_landmarks is not None and pair.nystrom:
            q_tilde[b], k_tilde[b] = query_landmarks[b], key_landmarks[b]
        elif pair.nystrom:
            q_tilde[b] = pair.queries.means(query[b], num_landmarks)
            k_tilde[b] = pair.keys.means(key[b], num_landmarks)
        if not pair.empty:
            q_b = q_tilde[b, :, :w] * scale
            gathered[b, :, :w], log_mass[b, :, :w] = gather(q_b, key[b], value[b], pair.keys, work)

    solved = _select(pairs)
    if solved is not None:
        kernel_2 = torch.softmax(scale * q_tilde[solved] @ k_tilde[solved].mT, -1)
        context[solved] = pinv_product(kernel_2, gathered[solved], pinv_iterations, pinv_init)

    for b, pair in enumerate(pairs):
        w, out = pair.width, output[b]
        convolution = None
        if conv_weight is not None:
            taps = conv_weight.to(work.dtype)
            convolution = Convolution(taps, value[b], pair.keys, work)
        if pair.empty:
            out.zero_()
        elif pair.few_queries:
            out.zero_()
            pair.queries.put(out, gathered[b, :, :w])
            if convolution is not None:
                convolution.add_to(out, pair.queries)
        else:
            pair.queries.clear_outside(out)
            landmarks = k_tilde[b, :, :w] * scale
            scatter(query[b], landmarks, context[b, :, :w], pair.queries, out, convolution, work)
    return output, q_tilde, k_tilde, gathered, context, log_mass


@blocked_forward.register_fake
def _(query, key, value, *rest):  # type: ignore[no-untyped-def]
    num_landmarks = rest[5]
    return _results(query, value, num_landmarks)


@torch.library.custom_op("nystromer::blocked_backward", mutates_args=())
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
    log_mass: Tensor,
    landmarks_given: bool,
    scale: float,
    pinv_iterations: int,
    pinv_init: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, conv_weight (empty if none), Q~ and K~."""
    m = q_tilde.shape[2]
    pairs = _pairs(query, key, mask, query_mask, m)
    work = _workspace(query, value, m)
    grads = _gradients(query, key, value, conv_weight, q_tilde)
    grad_query, grad_key, grad_value, grad_taps, grad_q_tilde, grad_k_tilde = grads
    grad_context, grad_gathered = torch.zeros_like(context), torch.zeros_like(gathered)

    for b, pair in enumerate(pairs):
        w = pair.width
        if pair.few_queries:
            grad_gathered[b, :, :w] = pair.queries.tokens(grad_output[b])
        elif not pair.empty:
            pair.queries.clear_outside(grad_query[b])
            grad_k, grad_context[b, :, :w] = scatter_backward(
                query[b],
                k_tilde[b, :, :w] * scale,
                context[b, :, :w],
                pair.queries,
                grad_output[b],
                grad_query[b],
                work,
            )
            grad_k_tilde[b, :, :w] = grad_k * scale

    solved = _select(pairs)
    if solved is not None:
        q, k = q_tilde[solved], k_tilde[solved]
        kernel_2 = torch.softmax(scale * q @ k.mT, -1)
        grad_kernel, grad_gathered[solved] = pinv_product_backward(
            kernel_2, gathered[solved], grad_context[solved], pinv_iterations, pinv_init
        )
        grad_logits = kernel_2 * (grad_kernel - (grad_kernel * kernel_2).sum(-1, keepdim=True))
        grad_q_tilde[solved] = scale * grad_logits @ k
        grad_k_tilde[solved] += scale * grad_logits.mT @ q

    for b, pair in enumerate(pairs):
        w = pair.width
        convolution = None
        if conv_weight is not None:
            taps = conv_weight.to(work.dtype)
            convolution = ConvolutionBackward(taps, grad_output[b], pair.queries, work)
        if pair.empty:
            for grad in (grad_query, grad_key, grad_value):
                grad[b].zero_()
            continue
        pair.keys.clear_outside(grad_key[b])
        pair.keys.clear_outside(grad_value[b])
        if pair.few_keys:
            grad_key[b].zero_()
            grad_value[b].zero_()
            pair.keys.put(grad_key[b], grad_k_tilde[b, :, :w])
            pair.keys.put(grad_value[b], grad_context[b, :, :w])
            if convolution is not None:
                convolution.add_to(grad_value[b], value[b], pair.keys)
        else:
            grad_q = gather_backward(
                q_tilde[b, :, :w] * scale,
                key[b],
                value[b],
                pair.keys,
                gathered[b, :, :w],
                log_mass[b, :, :w],
                grad_gathered[b, :, :w],
                grad_key[b],
                grad_value[b],
                convolution,
                work,
            )
            grad_q_tilde[b, :, :w] += grad_q * scale
        if pair.few_queries:
            grad_query[b].zero_()
            pair.queries.put(grad_query[b], grad_q_tilde[b, :, :w])
        elif pair.nystrom and not landmarks_given:
            pair.queries.spread(grad_query[b], grad_q_tilde[b])
            pair.keys.spread(grad_key[b], grad_k_tilde[b])
        if not pair.nystrom:  # landmarks from outside took no part
            grad_q_tilde[b].zero_()
            grad_k_tilde[b].zero_()
        if convolution is not None:
            grad_taps += convolution.taps()
    return grads


@blocked_backward.register_fake
def _(grad_output, query, key, value, mask, query_mask, conv_weight, q_tilde, *rest):  # type: ignore[no-untyped-def]
    return _gradients(query, key, value, conv_weight, q_tilde)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.landmarks_given = inputs[6] is not None
    ctx.settings = inputs[-3:]  # scale, pinv_iterations, pinv_init


def _backward(ctx, grad_output, *unused):  # type: ignore[no-untyped-def]
    conv_weight = ctx.saved_tensors[5]
    grads = blocked_backward(grad_output, *ctx.saved_tensors, ctx.landmarks_given, *ctx.settings)
    query, key, value, taps, q_tilde, k_tilde = grads
    taps = None if conv_weight is None else taps.to(conv_weight.dtype)
    landmarks = (q_tilde, k_tilde) if ctx.landmarks_given else (None, None)
    return query, key, value, None, None, taps, *landmarks, None, None, None, None


blocked_forward.register_autograd(_backward, setup_context=_setup_context)


def _pairs(
    query: Tensor, key: Tensor, mask: Tensor | None, query_mask: Tensor | None, num_landmarks: int
) -> list[Pair]:
    keys = sequences(mask, key.shape[0], key.shape[2])
    same = query_mask is mask and query.shape[2] == key.shape[2]
    queries = keys if same else sequences(query_mask, query.shape[0], query.shape[2])
    return [Pair(q, k, num_landmarks) for q, k in zip(queries, keys, strict=True)]


def _select(pairs: list[Pair]) -> list[int] | slice | None:
    """Index of the sequences that take Nyström attention, or None."""
    chosen = [b for b, pair in enumerate(pairs) if pair.nystrom]
    if len(chosen) == len(pairs):
        return slice(None)
    return chosen or None


def _workspace(query: Tensor, value: Tensor, num_landmarks: int) -> Workspace:
    """Blocks of as many tokens as keep the widest table, [H, block, M or D], in cache."""
    widest = query.shape[1] * max(num_landmarks, query.shape[3], value.shape[3])
    numbers = SCRATCH_ON_CPU if query.device.type == "cpu" else SCRATCH_ELSEWHERE
    block = max(64, numbers // widest // 64 * 64)
    return Workspace(query, accumulation_dtype(query.dtype), block)


def _empty(like: Tensor, dim: int) -> Tensor:
    """An empty [B, H, N, dim], in memory as `like` is: heads before tokens, or tokens first."""
    batch, heads, n, _ = like.shape
    if like.stride(1) < like.stride(2):
        return like.new_empty(batch, n, heads, dim).transpose(1, 2)
    return like.new_empty(batch, heads, n, dim)


def _results(
    query: Tensor, value: Tensor, num_landmarks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(query.dtype)

    def small(dim: int) -> Tensor:
        return query.new_zeros(*query.shape[:2], num_landmarks, dim, dtype=dtype)

    dim, value_dim = query.shape[3], value.shape[3]
    output = _empty(query, value_dim)
    return output, small(dim), small(dim), small(value_dim), small(value_dim), small(1)


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, conv_weight: Tensor | None, q_tilde: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        _empty(query, query.shape[3]),
        _empty(key, key.shape[3]),
        _empty(value, value.shape[3]),
        q_tilde.new_zeros((0,) if conv_weight is None else conv_weight.shape),
        torch.zeros_like(q_tilde),
        torch.zeros_like(q_tilde),
    )
