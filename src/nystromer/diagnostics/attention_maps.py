"""Computes whole attention maps of short sequences, their factors and their singular values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nystromer.checks import check_pinv, check_positive, check_query_key, softmax_scale
from nystromer.diagnostics.tokens import check_map_size, factors_of, real_tokens, relative_error
from nystromer.pinv import Pinv


@dataclass(frozen=True, eq=False)
class Maps:
    """The attention map of one head, and the three tables that approximate it, in float64.

    Args:
        exact: softmax(s Q Kᵀ), [Nq, Nk].
        kernel_1, inverse, kernel_3: [Nq, M], [M, M], [M, Nk].
    """

    exact: Tensor
    kernel_1: Tensor
    inverse: Tensor
    kernel_3: Tensor

    @property
    def approximation(self) -> Tensor:
        """The approximate map, kernel_1 · kernel_2⁺ · kernel_3, [Nq, Nk]."""
        return self.kernel_1 @ self.inverse @ self.kernel_3

    @property
    def error(self) -> float:
        """The error of the approximate map relative to the exact one, in the Frobenius norm."""
        return relative_error(self.approximation, self.exact)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of the exact attention map of every head, [H, N], largest first.

    A map made of M landmarks has rank M: its squared error is never below the sum of the squares of
    the singular values after the first M.
    """

    singular_values: Tensor

    def best_error(self, rank: int) -> float:
        """Returns the least relative error of maps of a rank: sqrt(Σ_{i > rank} σ_i² / Σ σ_i²)."""
        squares = self.singular_values**2
        return float((squares[:, rank:].sum() / squares.sum()).sqrt())


def maps(
    query: Tensor,
    key: Tensor,
    *,
    head: int = 0,
    num_landmarks: int = 64,
    mask: Tensor | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
) -> Maps:
    """Computes the attention map of one head and its factors, for pictures.

    The arguments are those of `diagnose`.

    Raises:
        ValueError: If there are more than 4,096 real tokens or no such head, or as `diagnose`.
    """
    check_positive("num_landmarks", num_landmarks)
    check_pinv(pinv_iterations, pinv_init)
    check_query_key(query, key)
    if not 0 <= head < query.shape[1]:
        raise ValueError(f"`head` must lie in 0 ... {query.shape[1] - 1}, got {head}.")
    q, k = real_tokens(mask, query, key)
    check_map_size(q, k)
    scale = softmax_scale(scale, query)
    factors = factors_of(q, k, num_landmarks, scale, Pinv(pinv_iterations, pinv_init))
    exact = torch.softmax(scale * q[0, head] @ k[0, head].mT, -1)
    return Maps(exact, *(x[0, head] for x in factors))


def spectrum(
    query: Tensor, key: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Spectrum:
    """Computes the singular values of softmax(s Q Kᵀ).

    It takes O(H N³): seconds at 1,024 tokens. The arguments are those of `diagnose`.

    Raises:
        ValueError: If the sequence has more than 4,096 real tokens, or as `diagnose`.
    """
    check_query_key(query, key)
    q, k = real_tokens(mask, query, key)
    check_map_size(q, k)
    scale = softmax_scale(scale, query)
    heads = zip(q[0], k[0], strict=True)
    return Spectrum(
        torch.stack([torch.linalg.svdvals(torch.softmax(scale * x @ y.mT, -1)) for x, y in heads])
    )
