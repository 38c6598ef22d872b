"""Compares Nyström attention with exact attention on given tokens: its error and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.checks import (
    check_pinv,
    check_positive,
    check_query_key,
    check_value,
    softmax_scale,
)
from nystromer.diagnostics.costs import Cost, cost
from nystromer.diagnostics.inverse import Inverse, inverse_of
from nystromer.diagnostics.tokens import MAP_LIMIT, factors_of, real_tokens, relative_error
from nystromer.pinv import Pinv


@dataclass(frozen=True)
class Diagnosis:
    """The error and the cost of attention with M landmarks.

    Args:
        num_landmarks: M.
        output_error: ‖Nyström - exact‖_F / ‖exact‖_F for the output, over all heads.
        map_error: The same for the attention map; None for more than 4,096 tokens.
        inverse: How good the inverse is; None where N <= M, since attention is exact then.
        cost: What it costs, beside exact attention.
    """

    num_landmarks: int
    output_error: float
    map_error: float | None
    inverse: Inverse | None
    cost: Cost


def diagnose(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_landmarks: Sequence[int],
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
) -> list[Diagnosis]:
    """Compares `nystrom_attention` with exact attention for every M in a list.

    It computes exact attention, in O(N²).

    Args:
        query, key, value: One sequence, [1, H, N, D].
        num_landmarks: Every M to try, at least one.
        mask: Real tokens, bool [1, Nk]; the others are left out (of the queries too if Nq = Nk).
        scale, pinv_iterations, pinv_init: As `nystrom_attention`.

    Raises:
        ValueError: If num_landmarks is empty, there is not exactly one sequence or no real token in
            it, or as `nystrom_attention`.
    """
    if not num_landmarks:
        raise ValueError("`num_landmarks` must list at least one M, got none; write [16, 64], say.")
    for m in num_landmarks:
        check_positive("num_landmarks", m)
    check_pinv(pinv_iterations, pinv_init)
    check_query_key(query, key)
    check_value(key, value)
    q, k, v = real_tokens(mask, query, key, value)
    scale = softmax_scale(scale, query)
    exact = F.scaled_dot_product_attention(q, k, v, scale=scale)
    shortest, longest = sorted((q.shape[2], k.shape[2]))
    found = []
    for m in num_landmarks:
        factors = factors_of(q, k, m, scale, Pinv(pinv_iterations, pinv_init))
        kernel_1, inverse, kernel_3 = factors
        output = kernel_1 @ (inverse @ (kernel_3 @ v))
        price = cost(
            q.shape[2],
            k.shape[2],
            m,
            heads=q.shape[1],
            head_dim=q.shape[3],
            value_dim=v.shape[3],
            pinv_iterations=pinv_iterations,
            itemsize=query.element_size(),
        )
        found.append(
            Diagnosis(
                m,
                relative_error(output, exact),
                _map_error(q, k, factors, scale) if longest <= MAP_LIMIT else None,
                inverse_of(q, k, m, scale, pinv_init) if shortest > m else None,
                price,
            )
        )
    return found


def _map_error(q: Tensor, k: Tensor, factors: tuple[Tensor, Tensor, Tensor], scale: float) -> float:
    """Returns the relative error of the attention map; a head at a time, since a map is N x N."""
    off = total = 0.0
    for query, key, kernel_1, inverse, kernel_3 in zip(
        q[0], k[0], *(x[0] for x in factors), strict=True
    ):
        exact = torch.softmax(scale * query @ key.mT, -1)
        off += float((kernel_1 @ inverse @ kernel_3 - exact).square().sum())
        total += float(exact.square().sum())
    return (off / total) ** 0.5
