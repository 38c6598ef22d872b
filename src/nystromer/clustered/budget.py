"""How many clusters and exact keys clustered attention has, and which calls it refuses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from nystromer.checks import check_positive


class Budget(NamedTuple):
    """The counts of clusters and of exact keys. The defaults: docs/clustered-attention.md."""

    query_clusters: int = 64  # G
    key_clusters: int = 16  # M
    exact_keys: int = 48  # T

    @property
    def keys(self) -> int:
        """How many keys every query scores, T + M. To so few tokens attention is exact."""
        return self.exact_keys + self.key_clusters


def check_budget(budget: Budget) -> None:
    """
    Raises:
        TypeError: If a count is not an int.
        ValueError: If a count is below 1.
    """
    names = ("num_query_clusters", "num_key_clusters", "num_exact_keys")
    for name, count in zip(names, budget, strict=True):
        check_positive(name, count)


def check_self_attention(query: Tensor, key: Tensor, is_causal: bool = False) -> None:
    """
    Raises:
        ValueError: If queries and keys are not as many, or the call is causal.
    """
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            "`query` and `key` of clustered attention must be of the same tokens, got "
            f"{query.shape[2]} queries and {key.shape[2]} keys; use nystrom_attention for "
            "cross-attention."
        )
    if is_causal:
        raise ValueError(
            "is_causal=True is impossible with clustered attention, got a causal call: a cluster "
            "holds tokens of the future; use scaled_dot_product_attention."
        )
