"""The function `clustered_attention`: checks its arguments, chooses a backend, calls it."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from nystromer.backends.native import unsupported as unsupported_by_native
from nystromer.checks import check_query_key, check_value, softmax_scale
from nystromer.clustered import blocked, eager, graph, native
from nystromer.clustered.budget import Budget, check_budget, check_self_attention
from nystromer.layout import batched, batched_mask, repeat_heads, unbatched
from nystromer.precision import autocast_inputs, without_autocast
from nystromer.registration import differentiated_anew, must_be_of_torch_alone, only_backward

BACKENDS: dict[str, ModuleType] = {
    "eager": eager,
    "blocked": blocked,
    "native": native,
    "graph": graph,
}


def clustered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_query_clusters: int = 64,
    num_key_clusters: int = 16,
    num_exact_keys: int = 48,
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    r"""Computes attention in O(N): exactly to a few keys, and through clusters to all others.

    Queries and keys are clustered. With the means q~ and k~ of a query's and a key's cluster,

        s q · k  =  s q~ · k + s q · k~ - s q~ · k~  +  s (q - q~) · (k - k~)

    The last term is of second order, and it is left out. The T keys that score highest for q~ are
    exact: for all queries of its cluster, s q · k is computed. The other keys of a key cluster
    share one slot. Its logit is

        s (q - q~) · k~ + log(sum_i exp(s q~ · k_i))

    and its value is the mean of their values with the weights exp(s q~ · k_i). The softmax of a
    query goes over T keys and M slots. The tables are Nyström's three, q k~, q~ k~ and q~ k; there
    is no inverse. It is not the paper's attention, and no call of `nystrom_attention` becomes one.
    It is closer to softmax attention where queries and keys have clusters, as those of trained
    encoders do, and no closer where they have none (docs/clustered-attention.md).

    An output never depends on padding or on the rest of the batch. A sequence of at most T + M
    real tokens gets exact softmax attention. Logits and softmax are computed in float32 (float64
    for float64 inputs). Time O(N (G + M + T) D) and the sorts of the clustering, memory O(N G).

    Gradients take the clusters and the choice of exact keys as constants, as those of any top-k do.

    Args:
        query: Q, [B, H, N, D], float16, bfloat16, float32 or float64. B and H may be left out, or B
            be several dimensions, as in `nystrom_attention`.
        key: K, [B, H, N, D].
        value: V, [B, H, N, Dv].
        num_query_clusters: G, at least 1; rounded down to a power of two, since clusters are halves
            of halves.
        num_key_clusters: M, at least 1; rounded in the same way.
        num_exact_keys: T, at least 1.
        mask: Real tokens, bool [B, N], any pattern; None means all. Outputs elsewhere are zero.
        scale: s, 1/sqrt(D) if None.
        backend: "eager" (the equations as written), "blocked" (a few heads at a time in scratch
            memory, forward and backward), "native" (the forward in the C++ library, for float32
            and bfloat16 on CPUs; the backward is blocked's), "graph" (decides nothing on a tensor's
            values, so that other runtimes can run it) or "auto". An explicit choice never falls
            back.
        is_causal: Must be False: a cluster holds tokens of the future.
        enable_gqa: Whether key and value may have fewer heads, as in `nystrom_attention`.

    Returns:
        [B, H, N, Dv], dtype of `value`.

    Raises:
        TypeError: If an input is not a tensor of one of the four dtypes, or a count is not an int.
        ValueError: If shapes, dtypes or devices disagree, queries and keys are not of the same
            tokens, the mask is not bool [B, N], a count is below 1, the backend is unknown, or
            is_causal is set.
        NotImplementedError: If an explicit backend cannot take the inputs.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 8, 1000, 64)  # each [B, H, N, D]
        >>> clustered_attention(q, k, v, num_exact_keys=96).shape
        torch.Size([2, 8, 1000, 64])
    """
    q, k, v = batched(query=query, key=key, value=value)
    mask = batched_mask("mask", mask, key)
    q, k, v = autocast_inputs(q, k, v)
    if enable_gqa:
        k, v = repeat_heads(k, "key", q), repeat_heads(v, "value", q)
    check_query_key(q, k)
    check_value(k, v)
    check_self_attention(q, k, is_causal)
    budget = Budget(num_query_clusters, num_key_clusters, num_exact_keys)
    check_budget(budget)
    with without_autocast(q):
        output = choose_backend(backend, q).forward(
            q, k, v, budget=budget, mask=mask, scale=softmax_scale(scale, q)
        )
    return unbatched(output, query)


def choose_backend(name: str, query: Tensor) -> ModuleType:
    """Returns the backend of that name.

    "auto" is native where it can take the queries, else blocked, or eager for gradients that only
    eager has, and graph for graphs that other runtimes shall read.

    Raises:
        ValueError: If there is no backend of that name.
        NotImplementedError: If it cannot run or cannot be differentiated as asked.
    """
    if name != "auto" and name not in BACKENDS:
        known = ", ".join(map(repr, ("auto", *BACKENDS)))
        raise ValueError(f"`backend` of clustered attention must be one of {known}, got {name!r}.")
    missing = unsupported_by_native(query)
    if name == "native" and missing is not None:
        raise NotImplementedError(f"backend='native' {missing}; use backend='blocked'.")
    if differentiated_anew() and name != "eager":
        if name != "auto":
            raise NotImplementedError(only_backward(name))
        return eager
    if name == "auto":
        if must_be_of_torch_alone():
            return graph
        return blocked if missing else native
    return BACKENDS[name]
