"""What attention costs, counted: multiplications, and bytes of the tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Multiplications, and bytes of the softmax tables, of Nyström and of exact attention.

    Exact: Nq Nk (D + Dv) multiplications and Nq Nk numbers a head. Nyström with n steps:
    (Nq + Nk) M (D + Dv) + M² (D + Dv) + 4 n M³, and (Nq + Nk) M + M² numbers.
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
    """See `Cost` for the formulas. itemsize: bytes of a number."""
    m, dims = num_landmarks, head_dim + (head_dim if value_dim is None else value_dim)
    both = queries + keys
    return Cost(
        heads * (both * m * dims + m * m * dims + 4 * pinv_iterations * m**3),
        heads * (both * m + m * m) * itemsize,
        heads * queries * keys * dims,
        heads * queries * keys * itemsize,
    )
