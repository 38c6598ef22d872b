"""Counts what attention costs: its multiplications, and the bytes of its tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """The multiplications, and the bytes of the softmax tables, of Nyström and exact attention.

    For each head, exact attention takes Nq Nk (D + Dv) multiplications, and its table has Nq Nk
    numbers. Nyström attention with n steps of the inverse takes (Nq + Nk) M (D + Dv) +
    M² (D + Dv) + 4 n M³ multiplications, and its tables have (Nq + Nk) M + M² numbers.
    """

    multiplications: int
    table_bytes: int
    exact_multiplications: int
    exact_table_bytes: int


def cost(
    queries: int,
    keys: int,
    num_landmarks: int,
    *,
    heads: int = 1,
    head_dim: int = 64,
    value_dim: int | None = None,
    pinv_iterations: int = 6,
    itemsize: int = 4,
) -> Cost:
    """Counts the cost of attention of that size by the formulas of `Cost`.

    Args:
        itemsize: Bytes of a number.
    """
    m, dims = num_landmarks, head_dim + (head_dim if value_dim is None else value_dim)
    both = queries + keys
    return Cost(
        heads * (both * m * dims + m * m * dims + 4 * pinv_iterations * m**3),
        heads * (both * m + m * m) * itemsize,
        heads * queries * keys * dims,
        heads * queries * keys * itemsize,
    )
