"""What the fast backend computes for a few heads of one sequence, forward and backward.

Shapes: H heads, L tokens, D features; G query clusters of P tokens, M key clusters of C tokens, T
exact keys; S = G P or M C places, of which the last of a cluster may be empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log, log2

import torch
from torch import Tensor

from nystromer.backends.blocked.sequences import Workspace
from nystromer.clustered.clusters import Clusters


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
    work: Workspace,
) -> Tables:
    """Computes the tables from queries, keys and values, [H, L, D], and their clusters.

    exact: The exact keys that the forward has chosen; None chooses them.
    """
    heads, _, dim = tokens[0].shape
    groups, slots = queries.count, keys.count
    q = sort(tokens[0], queries, work, "q")
    k, v = (sort(x, keys, work, name) for x, name in zip(tokens[1:], "kv", strict=True))
    q_tilde, k_tilde = means(q, queries).mul_(scale), means(k, keys)
    scores, exact = far_scores(q_tilde, k, keys, exact, exact_keys, work)
    weights, log_mass = softmax(scores, work)
    bias = log_mass.mT - q_tilde @ k_tilde.mT  # [H, G, M]
    far = product(weights.flatten(0, 1), v.view(heads * slots, keys.size, -1), work, "far")
    far = far.view(heads, slots, groups, -1).transpose(1, 2)  # [H, G, M, Dv]
    all_keys = join(k_tilde[:, None], rows(k, exact, work, "exact keys"), slots, work, "keys")
    values = join(far, rows(v, exact, work, "exact values"), slots, work, "values")
    logits = work("logits", heads * groups, queries.size, all_keys.shape[1])
    torch.baddbmm(
        torch.nn.functional.pad(bias, (0, exact.shape[2])).view(heads * groups, 1, -1),
        q.view(heads * groups, queries.size, dim),
        all_keys.mT,
        alpha=scale,
        out=logits,
    )
    probabilities = torch.softmax(logits, -1, out=work("probabilities", *logits.shape))
    return Tables(q, k, v, q_tilde, k_tilde, exact, weights, all_keys, values, probabilities)


def far_scores(
    q_tilde: Tensor,
    k: Tensor,
    keys: Clusters,
    exact: Tensor | None,
    exact_keys: int,
    work: Workspace,
) -> tuple[Tensor, Tensor]:
    """Computes Nyström's third table, q~ · k_i, times log2(e), and chooses the exact keys.

    Returns the table by slots, [H, M, G, C], -inf at empty places and at the exact keys; and the
    exact keys, [H, G, T].
    """
    scores = work("scores", *q_tilde.shape[:2], k.shape[1])
    torch.bmm(q_tilde * log2(e), k.mT, out=scores)
    by_slot = scores.unflatten(2, (keys.count, keys.size))
    by_slot[:, :, keys.short(), -1] = -torch.inf
    if exact is None:
        exact = scores.topk(exact_keys, sorted=False).indices
    scores.scatter_(2, exact, -torch.inf)
    return by_slot.transpose(1, 2), exact


def softmax(scores: Tensor, work: Workspace) -> tuple[Tensor, Tensor]:
    """Returns the softmax of scores that are times log2(e), and the log of the sum of each row.

    The log lacks the last dimension. A row that is -inf throughout gives zeros.
    """
    limits = torch.finfo(scores.dtype)
    top = scores.amax(-1, keepdim=True).clamp_(min=limits.min)
    weights = torch.sub(scores, top, out=work("weights", *scores.shape)).exp2_()
    mass = weights.sum(-1, keepdim=True).clamp_(min=limits.tiny)
    return weights.div_(mass), top.add_(mass.log2()).mul_(log(2))[..., 0]


def join(far: Tensor, exact: Tensor, slots: int, work: Workspace, name: str) -> Tensor:
    """Puts slots, [H, G or 1, M, D], before exact keys, [H, G, T, D]: [H G, M + T, D]."""
    heads, groups, count, dim = exact.shape
    out = work(name, heads, groups, slots + count, dim)
    out[:, :, :slots] = far
    out[:, :, slots:] = exact
    return out.flatten(0, 1)


def output_of(tables: Tables, queries: Clusters, output: Tensor, work: Workspace) -> None:
    """Writes the output, [H, L, Dv], from the tables."""
    tokens = product(tables.probabilities, tables.values, work, "output")
    unsort(tokens.view(len(tables.q), queries.order.shape[1], -1), queries, output)


def gradients_of(
    tables: Tables,
    grad_output: Tensor,
    queries: Clusters,
    keys: Clusters,
    scale: float,
    grads: list[Tensor],
    work: Workspace,
) -> None:
    """Writes the gradients of q, k and v, [H, L, D], from that of the output."""
    x = tables
    heads, groups, slots = len(x.q), queries.count, keys.count
    grad_output = sort(grad_output, queries, work, "grad output")
    grad_output = grad_output.view(heads * groups, queries.size, -1)

    grad_values = product(x.probabilities.mT, grad_output, work, "grad values")
    grad_probabilities = product(grad_output, x.values.mT, work, "grad probabilities")
    grad_logits = work("logits", *x.probabilities.shape)
    torch.ops.aten._softmax_backward_data.out(
        grad_probabilities, x.probabilities, -1, grad_logits.dtype, grad_input=grad_logits
    )
    grad_bias = grad_logits[..., :slots].sum(1).view(heads, groups, slots)
    grad_q = product(grad_logits, x.keys, work, "grad q").mul_(scale).view(x.q.shape)
    q = x.q.view(heads * groups, queries.size, -1)
    grad_keys = product(grad_logits.mT, q, work, "grad keys").mul_(scale)
    grad_keys = grad_keys.view(heads, groups, -1, q.shape[2])
    grad_values = grad_values.view(heads, groups, -1, x.v.shape[2])

    # the slots: value = weights · v, bias = log(sum of exp(q~ · k_i)) - q~ · k~
    grad_far = grad_values[:, :, :slots].transpose(1, 2).contiguous()  # [H, M, G, Dv]
    far = x.values.view(grad_values.shape)[:, :, :slots].transpose(1, 2)
    weights, of_slots = x.weights.flatten(0, 1), (heads * slots, keys.size, -1)
    grad_v = product(weights.mT, grad_far.flatten(0, 1), work, "grad v").view(x.v.shape)
    grad_scores = product(grad_far.flatten(0, 1), x.v.view(of_slots).mT, work, "grad scores")
    offset = grad_bias.mT - (grad_far * far).sum(-1)  # [H, M, G]
    grad_scores.add_(offset.reshape(-1, groups, 1)).mul_(weights)
    grad_q_tilde = product(grad_scores, x.k.view(of_slots), work, "grad q tilde")
    grad_q_tilde = grad_q_tilde.view(heads, slots, groups, -1).sum(1).sub_(grad_bias @ x.k_tilde)
    q_tilde = x.q_tilde[:, None].expand(-1, slots, -1, -1).flatten(0, 1)
    grad_k = product(grad_scores.mT, q_tilde, work, "grad k").view(x.k.shape)
    grad_k_tilde = grad_keys[:, :, :slots].sum(1).sub_(grad_bias.mT @ x.q_tilde)

    add_rows(grad_k, x.exact, grad_keys[:, :, slots:])
    add_rows(grad_v, x.exact, grad_values[:, :, slots:])
    spread(grad_q, grad_q_tilde.mul_(scale), queries)
    spread(grad_k, grad_k_tilde, keys)
    for grad, clusters, out in zip(
        (grad_q, grad_k, grad_v), (queries, keys, keys), grads, strict=True
    ):
        unsort(grad, clusters, out)


def product(a: Tensor, b: Tensor, work: Workspace, name: str) -> Tensor:
    """Returns a @ b in scratch memory of that name."""
    return torch.bmm(a, b, out=work(name, *a.shape[:2], b.shape[2]))


def sort(x: Tensor, clusters: Clusters, work: Workspace, name: str) -> Tensor:
    """Puts tokens, [H, L, D], in the order of their clusters, zero at empty places: [H, S, D]."""
    out = work(name, len(x), clusters.order.shape[1], x.shape[2])
    for x_h, order, out_h in zip(x, clusters.order.clamp(max=x.shape[1] - 1), out, strict=True):
        torch.index_select(x_h, 0, order, out=out_h)
    out.unflatten(1, (clusters.count, clusters.size))[:, clusters.short(), -1] = 0
    return out


def unsort(x: Tensor, clusters: Clusters, out: Tensor) -> None:
    """Writes x, [H, S, D], to out in the order of the tokens, [H, L, D]."""
    for x_h, place, out_h in zip(x, clusters.places, out, strict=True):
        torch.index_select(x_h, 0, place, out=out_h)


def rows(x: Tensor, index: Tensor, work: Workspace, name: str) -> Tensor:
    """Returns x[h, index[h]] for every head h: [H, S, D] and [H, G, T] -> [H, G, T, D]."""
    out = work(name, *index.shape, x.shape[2])
    for x_h, index_h, out_h in zip(x, index, out, strict=True):
        torch.index_select(x_h, 0, index_h.flatten(), out=out_h.flatten(0, 1))
    return out


def add_rows(x: Tensor, index: Tensor, grad: Tensor) -> None:
    """Adds grad, [H, G, T, D], to the rows of x that `rows` has read."""
    for x_h, index_h, grad_h in zip(x, index, grad, strict=True):
        x_h.index_add_(0, index_h.flatten(), grad_h.flatten(0, 1))


def means(x: Tensor, clusters: Clusters) -> Tensor:
    """Returns the mean of each cluster's tokens: [H, S, D] -> [H, G, D]."""
    return x.unflatten(1, (clusters.count, clusters.size)).sum(2).div_(clusters.divisor(x))


def spread(x: Tensor, grad_means: Tensor, clusters: Clusters) -> None:
    """Adds to x, the gradient of tokens, [H, S, D], their share of that of their `means`."""
    share = grad_means / clusters.divisor(x)
    x.unflatten(1, (clusters.count, clusters.size)).add_(share[:, :, None])
