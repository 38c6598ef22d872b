"""Packed sequences: from jagged nested tensors and back, and as a padded batch.

Packed sequences stand one behind the other, [1, H, T, D] within the package; their bounds, int
[S + 1], take the place of the mask: sequence s has the tokens bounds[s] ... bounds[s + 1] - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nystromer.checks import packed_lengths


def is_nested(*tensors: object) -> bool:
    return any(isinstance(x, Tensor) and x.is_nested for x in tensors)


def check_jagged(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuses all but jagged nested tensors [B, H, j, D] of as many sequences."""
    for name, x in {"query": query, "key": key, "value": value}.items():
        if not is_nested(x):
            raise ValueError(f"`{name}` must be a nested tensor as the other inputs are.")
        if x.layout != torch.jagged:
            raise ValueError(
                f"`{name}` is a nested tensor of layout {x.layout}; write "
                "torch.nested.nested_tensor(sequences, layout=torch.jagged)."
            )
        if x.dim() != 4 or x._ragged_idx != 2:  # type: ignore[attr-defined]
            raise ValueError(
                f"`{name}` must be a nested tensor [B, H, j, D], ragged in its tokens, got "
                f"{list(x.shape)}; write {name}.transpose(1, 2) if tokens stand before heads."
            )
        if x.lengths() is not None:  # type: ignore[attr-defined]
            raise ValueError(
                f"`{name}` is a nested tensor with gaps between its sequences; write "
                f"{name}.transpose(1, 2).contiguous().transpose(1, 2)."
            )
    if query.shape[0] != key.shape[0] or key.shape[2] != value.shape[2]:
        raise ValueError(
            "`query` must hold as many sequences as `key`, and `value` sequences as long as those "
            f"of `key`, got {list(query.shape)}, {list(key.shape)} and {list(value.shape)}."
        )


def from_jagged(
    query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tokens [1, H, T, D] of nested query, key and value; the bounds of queries and of keys."""
    check_jagged(query, key, value)
    q, k, v = (x.values()[None] for x in (query, key, value))
    return q, k, v, query.offsets(), key.offsets()  # type: ignore[attr-defined]


def like_jagged(output: Tensor, query: Tensor) -> Tensor:
    """The output [1, H, T, Dv] as a nested tensor [B, H, j, Dv], ragged as the query is."""
    bounds = query.offsets()  # type: ignore[attr-defined]
    return torch.nested.nested_tensor_from_jagged(output[0], bounds, jagged_dim=2)


def longest_sequence(mask: Tensor, total: int) -> int:
    """Tokens of the longest packed sequence; all of them where values cannot be read."""
    if torch.compiler.is_compiling():
        return total
    return max(packed_lengths("cu_seqlens", mask, total), default=0)


def padded(
    forward: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor,
    query_mask: Tensor,
    **options: Any,
) -> Tensor:
    """Runs packed sequences as a padded batch, for a backend that knows masks alone."""
    total = query.shape[2]
    (query, queries), (key, keys), (value, _) = (
        _pad(x, bounds) for x, bounds in ((query, query_mask), (key, mask), (value, mask))
    )
    output = forward(query, key, value, mask=keys, query_mask=queries, **options)
    positions = torch.arange(total, device=output.device)
    sequence = torch.searchsorted(query_mask, positions, right=True) - 1  # of every token, [T]
    tokens = output[sequence, :, positions - query_mask[sequence]]  # [T, H, Dv]
    return tokens.transpose(0, 1)[None]


def _pad(x: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, H, T, D] as [S, H, N, D], and the mask [S, N] of its tokens."""
    total = x.shape[2]
    ranks = torch.arange(longest_sequence(bounds, total), device=x.device)
    index = bounds[:-1, None] + ranks  # [S, N]
    return x[0][:, index.clamp(max=total - 1)].transpose(0, 1), index < bounds[1:, None]
