"""What the backend "blocked" computes for a few heads of one sequence, forward and backward.

Shapes: H heads, L tokens, D features; G query clusters of P tokens, M key clusters of C tokens, T
exact keys; S = G P or M C places, of which the last of a cluster may be empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log, log2

import torch
from torch import Tensor

from nystromer.clustered.clusters import Clusters
from nystromer.clustered.tokens import means, rows, sort, split, unsort


@dataclass(frozen=True)
class Tables:
    """The tables that the output is made of.

    q, k, v: Tokens in the order of their clusters, zero at empty places: [H, S, D].
    q_tilde: Mean queries times the scale, [H, G, D].
    k_tilde: Mean keys, [H, M, D].
    exact: The T keys, as places in the order of the key clusters, [H, G, T].
    weights: What every other key weighs in its slot, as in `eager.Slots`, but [H, M, G, C].
    keys, values: What a query of each cluster scores and reads: M slots, T keys; [H G, M + T, D].
    probabilities: The softmax of a query over those, [H G, P, M + T].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_tilde: Tensor
    k_tilde: Tensor
    exact: Tensor
    weights: Tensor
    keys: Tensor
    values: Tensor
    probabilities: Tensor


def make_tables(
    tokens: tuple[Tensor, Tensor, Tensor],
    queries: Clusters,
    keys: Clusters,
    exact: Tensor | None,
    exact_keys: int,
    scale: float,
) -> Tables:
    """Computes the tables from queries, keys and values, [H, L, D], and their clusters.

    exact: The exact keys that the forward has chosen; None chooses them.
    """
    heads, groups = len(tokens[0]), queries.count
    q, k, v = (sort(x, c) for x, c in zip(tokens, (queries, keys, keys), strict=True))
    q_tilde, k_tilde = scale * means(q, queries), means(k, keys)
    scores, exact = far_scores(q_tilde, k, keys, exact, exact_keys)
    weights, log_mass = softmax(scores)
    bias = log_mass.mT - q_tilde @ k_tilde.mT  # [H, G, M]
    far = (weights @ split(v, keys)).transpose(1, 2)  # [H, G, M, Dv]
    all_keys = torch.cat([k_tilde[:, None].expand(-1, groups, -1, -1), rows(k, exact)], 2)
    values = torch.cat([far, rows(v, exact)], 2)
    logits = torch.baddbmm(
        torch.nn.functional.pad(bias, (0, exact.shape[2])).view(heads * groups, 1, -1),
        split(q, queries).flatten(0, 1),
        all_keys.flatten(0, 1).mT,
        alpha=scale,
    )
    probabilities = torch.softmax(logits, -1)
    both = all_keys.flatten(0, 1), values.flatten(0, 1)
    return Tables(q, k, v, q_tilde, k_tilde, exact, weights, *both, probabilities)


def far_scores(
    q_tilde: Tensor, k: Tensor, keys: Clusters, exact: Tensor | None, exact_keys: int
) -> tuple[Tensor, Tensor]:
    """Computes Nyström's third table, q~ · k_i, times log2(e), and chooses the exact keys.

    Returns the table by slots, [H, M, G, C], -inf at empty places and at the exact keys; and the
    exact keys, [H, G, T].
    """
    scores = (q_tilde * log2(e)) @ k.mT
    by_slot = scores.unflatten(2, (keys.count, keys.size))
    by_slot[:, :, keys.short(), -1] = -torch.inf
    if exact is None:
        exact = scores.topk(exact_keys, sorted=False).indices
    scores.scatter_(2, exact, -torch.inf)
    return by_slot.transpose(1, 2), exact


def softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the softmax of scores that are times log2(e), and the log of the sum of each row.

    The log lacks the last dimension. A row that is -inf throughout gives zeros.
    """
    limits = torch.finfo(scores.dtype)
    top = scores.amax(-1, keepdim=True).clamp_(min=limits.min)
    weights = (scores - top).exp2_()
    mass = weights.sum(-1, keepdim=True).clamp_(min=limits.tiny)
    return weights.div_(mass), top.add_(mass.log2()).mul_(log(2))[..., 0]


def output_of(tables: Tables, queries: Clusters) -> Tensor:
    """Returns the output, [H, L, Dv], from the tables."""
    tokens = tables.probabilities @ tables.values
    return unsort(tokens.view(len(tables.q), queries.order.shape[1], -1), queries)


def gradients_of(
    tables: Tables, grad_output: Tensor, queries: Clusters, keys: Clusters, scale: float
) -> list[Tensor]:
    """Returns the gradients of q, k and v, [H, L, D], from that of the output."""
    x = tables
    heads, groups, slots = len(x.q), queries.count, keys.count
    grad_output = split(sort(grad_output, queries), queries).flatten(0, 1)

    grad_values = x.probabilities.mT @ grad_output
    grad_logits = torch._softmax_backward_data(
        grad_output @ x.values.mT, x.probabilities, -1, x.probabilities.dtype
    )
    grad_bias = grad_logits[..., :slots].sum(1).view(heads, groups, slots)
    grad_q = (grad_logits @ x.keys).mul_(scale).view(x.q.shape)
    q = split(x.q, queries).flatten(0, 1)
    grad_keys = (grad_logits.mT @ q).mul_(scale).view(heads, groups, -1, q.shape[2])
    grad_values = grad_values.view(heads, groups, -1, x.v.shape[2])

    # the slots: value = weights · v, bias = log(sum of exp(q~ · k_i)) - q~ · k~
    grad_far = grad_values[:, :, :slots].transpose(1, 2)  # [H, M, G, Dv]
    far = x.values.view(grad_values.shape)[:, :, :slots].transpose(1, 2)
    grad_v = (x.weights.mT @ grad_far).reshape(x.v.shape)
    offset = grad_bias.mT - (grad_far * far).sum(-1)  # [H, M, G]
    grad_scores = (grad_far @ split(x.v, keys).mT).add_(offset[..., None]).mul_(x.weights)
    grad_q_tilde = (grad_scores @ split(x.k, keys)).sum(1).sub_(grad_bias @ x.k_tilde)
    grad_k = (grad_scores.mT @ x.q_tilde[:, None]).reshape(x.k.shape)
    grad_k_tilde = grad_keys[:, :, :slots].sum(1).sub_(grad_bias.mT @ x.q_tilde)

    add_rows(grad_k, x.exact, grad_keys[:, :, slots:])
    add_rows(grad_v, x.exact, grad_values[:, :, slots:])
    spread(grad_q, grad_q_tilde.mul_(scale), queries)
    spread(grad_k, grad_k_tilde, keys)
    return [unsort(grad_q, queries), unsort(grad_k, keys), unsort(grad_v, keys)]


def add_rows(x: Tensor, index: Tensor, grad: Tensor) -> None:
    """Adds grad, [H, G, T, D], to the rows of x that `rows` has read."""
    for x_h, index_h, grad_h in zip(x, index, grad, strict=True):
        x_h.index_add_(0, index_h.flatten(), grad_h.flatten(0, 1))


def spread(x: Tensor, grad_means: Tensor, clusters: Clusters) -> None:
    """Adds to x, the gradient of tokens, [H, S, D], their share of that of their `means`."""
    split(x, clusters).add_((grad_means / clusters.divisor(x))[:, :, None])
