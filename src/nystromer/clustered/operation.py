"""The fast backend over a whole batch, as two operations that autograd and torch.compile know."""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nystromer.backends.blocked.sequences import Sequence, sequences
from nystromer.clustered.budget import Budget
from nystromer.clustered.clusters import Clusters, bisected, clusters_of
from nystromer.clustered.tables import gradients_of, make_tables, output_of
from nystromer.precision import accumulation_dtype
from nystromer.registration import (
    derivative_of,
    empty_as,
    operation,
    refuse_second_derivative,
    shapes_of,
)

ROWS_A_THREAD = 2048  # tokens times heads at a time: their tables of a megabyte stay in cache


@operation("clustered_forward")
def clustered_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_clusters: int,
    key_clusters: int,
    exact_keys: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the output, and returns with it what the backward needs.

    That is the places of queries and of keys in the order of their clusters, and the exact keys.
    """
    budget = Budget(query_clusters, key_clusters, exact_keys)
    results = results_of(query, value, *budget)
    for b, sequence in enumerate(sequences(mask, query.shape[0], query.shape[2])):
        output, chosen = results[0][b], (results[1][b], results[2][b], results[3][b])
        q, k, v = (sequence.tokens(x[b]) for x in (query, key, value))
        if sequence.length <= budget.keys:
            tokens = _probabilities(q, k, scale) @ v.to(accumulation_dtype(v.dtype))
        else:
            tokens = _forward(q, k, v, budget, chosen, scale)
        _write(output, tokens, sequence)
    return results


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    budget: Budget,
    chosen: tuple[Tensor, Tensor, Tensor],
    scale: float,
) -> Tensor:
    """Returns the output of the tokens of one sequence, [H, L, Dv], and fills in `chosen`."""
    q, k, v = (x.to(accumulation_dtype(x.dtype)) for x in (q, k, v))
    clusters = _clusters(q, k, budget)
    output = torch.empty_like(v)
    for i, j in _heads(q):
        queries, keys = (x.of_heads(i, j) for x in clusters)
        tokens = q[i:j], k[i:j], v[i:j]
        tables = make_tables(tokens, queries, keys, None, budget.exact_keys, scale)
        output[i:j] = output_of(tables, queries)
        for kept, new in zip(chosen, (queries.places, keys.places, tables.exact), strict=True):
            kept[i:j, : new.shape[1]] = new
    return output


@operation("clustered_backward")
def clustered_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_places: Tensor,
    key_places: Tensor,
    exact: Tensor,
    query_clusters: int,
    key_clusters: int,
    exact_keys: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key and value."""
    budget = Budget(query_clusters, key_clusters, exact_keys)
    grads = _gradients(query, key, value)
    for b, sequence in enumerate(sequences(mask, query.shape[0], query.shape[2])):
        q, k, v, g = (sequence.tokens(x[b]) for x in (query, key, value, grad_output))
        if sequence.length <= budget.keys:
            tokens = _exact_backward(q, k, v, g, scale)
        else:
            chosen = (query_places[b], key_places[b], exact[b])
            tokens = _backward(q, k, v, g, budget, chosen, scale)
        for grad, of_tokens in zip(grads, tokens, strict=True):
            _write(grad[b], of_tokens, sequence)
    return grads


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_output: Tensor,
    budget: Budget,
    chosen: tuple[Tensor, Tensor, Tensor],
    scale: float,
) -> list[Tensor]:
    """Returns the gradients of the tokens of one sequence, by what the forward has chosen."""
    query_places, key_places = (x[:, : q.shape[1]] for x in chosen[:2])
    queries = clusters_of(query_places, budget.query_clusters)
    keys = clusters_of(key_places, budget.key_clusters)
    exact = chosen[2][:, : queries.count]
    q, k, v, grad_output = (x.to(accumulation_dtype(x.dtype)) for x in (q, k, v, grad_output))
    grads = [torch.empty_like(x) for x in (q, k, v)]
    for i, j in _heads(q):
        of_heads = queries.of_heads(i, j), keys.of_heads(i, j)
        tokens = q[i:j], k[i:j], v[i:j]
        tables = make_tables(tokens, *of_heads, exact[i:j], budget.exact_keys, scale)
        found = gradients_of(tables, grad_output[i:j], *of_heads, scale)
        for grad, of_some in zip(grads, found, strict=True):
            grad[i:j] = of_some
    return grads


@shapes_of("clustered_backward")
def _(grad_output, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return _gradients(query, key, value)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.settings = inputs[4:]


def _first(ctx: Any, grad_output: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    run = torch.ops.nystromer.clustered_backward.default
    return *run(grad_output, *ctx.saved_tensors, *ctx.settings), *[None] * 5


def backward_of(forward: str) -> None:
    """Gives the operation of that name its shapes and, for autograd, `clustered_backward`."""

    @shapes_of(forward)
    def _(query, key, value, mask, *rest):  # type: ignore[no-untyped-def]
        return results_of(query, value, *rest[:3])

    derivative_of(forward, _first, _setup_context)


def results_of(
    query: Tensor, value: Tensor, query_clusters: int, key_clusters: int, exact_keys: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns empty results of the forward: the output, two times places, exact keys."""
    places, n = query.new_zeros(query.shape[:3], dtype=torch.int64), query.shape[2]
    exact = places.new_zeros(*query.shape[:2], min(query_clusters, n), min(exact_keys, n))
    return empty_as(query, value.shape[3]), places, torch.zeros_like(places), exact


backward_of("clustered_forward")
refuse_second_derivative("clustered_backward", "blocked")


def _gradients(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (empty_as(x, x.shape[3]) for x in inputs)
    return query, key, value


def _clusters(q: Tensor, k: Tensor, budget: Budget) -> tuple[Clusters, Clusters]:
    """Returns the clusters of queries and of keys."""
    if budget.query_clusters != budget.key_clusters:
        return bisected(q, budget.query_clusters), bisected(k, budget.key_clusters)
    both, heads = bisected(torch.cat([q, k]), budget.query_clusters), len(q)  # half the calls
    return both.of_heads(0, heads), both.of_heads(heads, 2 * heads)


def _heads(q: Tensor) -> Iterator[tuple[int, int]]:
    """Yields the heads that are taken at a time: the first, and the one after the last."""
    heads, length, _ = q.shape
    step = max(1, ROWS_A_THREAD * torch.get_num_threads() // length)
    for i in range(0, heads, step):
        yield i, min(i + step, heads)


def _write(x: Tensor, tokens: Tensor, sequence: Sequence) -> None:
    """Writes tokens, [H, L, D], to the real positions of x, [H, N, D], and zeros elsewhere."""
    if sequence.length < x.shape[1]:
        x.zero_()
    sequence.put(x, tokens)


def _probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Returns the map of exact attention, [H, L, L], for few tokens."""
    dtype = accumulation_dtype(q.dtype)
    return torch.softmax(scale * q.to(dtype) @ k.to(dtype).mT, -1)


def _exact_backward(
    q: Tensor, k: Tensor, v: Tensor, grad_output: Tensor, scale: float
) -> list[Tensor]:
    """Returns the gradients of exact attention over few tokens."""
    q, k, v, grad_output = (x.to(accumulation_dtype(x.dtype)) for x in (q, k, v, grad_output))
    weights = _probabilities(q, k, scale)
    grad_weights = grad_output @ v.mT
    offset = (grad_weights * weights).sum(-1, keepdim=True)
    grad_logits = scale * weights * (grad_weights - offset)
    return [grad_logits @ k, grad_logits.mT @ q, weights.mT @ grad_output]
