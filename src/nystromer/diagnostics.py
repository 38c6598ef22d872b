"""How good Nyström attention is on given tokens, and why, as numbers.

One sequence at a time, [1, H, N, D], in float64. Shapes: H heads, N real tokens (a mask removes the
others), M landmarks, D and Dv features of keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.backends import eager
from nystromer.checks import (
    check_mask,
    check_pinv,
    check_positive,
    check_query_key,
    check_value,
    softmax_scale,
)
from nystromer.landmarks import segment_means
from nystromer.pinv import Pinv, pinv_start

MAP_LIMIT = 4096  # tokens up to which an N x N map is computed
INVERSE_STEPS = 24  # of the inverse that are followed


@dataclass(frozen=True)
class Inverse:
    r"""The inverse of A = kernel_2; of all numbers the worst head's.

    With the singular values σ of A and c = ‖A‖_1 ‖A‖_inf, A Z_j has the singular values t_j of the
    recursion t_0 = σ² / c, t_{j+1} = t_j (13 - 15 t_j + 7 t_j² - t_j³) / 4, which goes to 1.

    Args:
        residuals: ‖A Z_j - A A⁺‖_F / ‖A A⁺‖_F after j = 0 ... 24 steps.
        margin: 1 - ‖A A⁺ - A Z_0‖_2 = min σ² / c over the σ that are not zero in float64. Lemma 1
            asks that it be above 0. A small one grows 3.25 times a step: six steps invert the
            directions above about 1/1200 and damp the others.
        condition: max σ / min σ.
    """

    residuals: tuple[float, ...]
    margin: float
    condition: float

    @property
    def converges(self) -> bool:
        """Lemma 1: ‖A A⁺ - A Z_0‖_2 < 1."""
        return self.margin > 0


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


@dataclass(frozen=True)
class Diagnosis:
    """What M landmarks cost and give.

    Args:
        output_error: ‖Nyström - exact‖_F / ‖exact‖_F of the output, over all heads.
        map_error: The same of the attention map; None for more than 4,096 tokens.
        inverse: None where N <= M and attention is exact.
    """

    num_landmarks: int
    output_error: float
    map_error: float | None
    inverse: Inverse | None
    cost: Cost


@dataclass(frozen=True, eq=False)
class Maps:
    """The attention map of one head and what Nyström makes of it, float64.

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
        """kernel_1 · kernel_2⁺ · kernel_3, [Nq, Nk]."""
        return self.kernel_1 @ self.inverse @ self.kernel_3

    @property
    def error(self) -> float:
        return _relative_error(self.approximation, self.exact)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of the exact attention map of every head, [H, N], largest first.

    No map of M landmarks can be closer to it than the sum of squares beyond the first M.
    """

    singular_values: Tensor

    def best_error(self, rank: int) -> float:
        """Relative error of the best maps of that rank: sqrt(Σ_{i > rank} σ_i² / Σ σ_i²)."""
        squares = self.singular_values**2
        return float((squares[:, rank:].sum() / squares.sum()).sqrt())


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
    """Compares `nystrom_attention` to exact attention for every M. Computes exact attention: O(N²).

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
    q, k, v = _real_tokens(mask, query, key, value)
    scale = softmax_scale(scale, query)
    exact = F.scaled_dot_product_attention(q, k, v, scale=scale)
    shortest, longest = sorted((q.shape[2], k.shape[2]))
    found = []
    for m in num_landmarks:
        factors = _factors(q, k, m, scale, Pinv(pinv_iterations, pinv_init))
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
                _relative_error(output, exact),
                _map_error(q, k, factors, scale) if longest <= MAP_LIMIT else None,
                _inverse(q, k, m, scale, pinv_init) if shortest > m else None,
                price,
            )
        )
    return found


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
    """The attention map of one head beside its factors, for pictures. Arguments as `diagnose`.

    Raises:
        ValueError: If there are more than 4,096 real tokens or no such head, or as `diagnose`.
    """
    check_positive("num_landmarks", num_landmarks)
    check_pinv(pinv_iterations, pinv_init)
    check_query_key(query, key)
    if not 0 <= head < query.shape[1]:
        raise ValueError(f"`head` must lie in 0 ... {query.shape[1] - 1}, got {head}.")
    q, k = _real_tokens(mask, query, key)
    _check_map_size(q, k)
    scale = softmax_scale(scale, query)
    factors = _factors(q, k, num_landmarks, scale, Pinv(pinv_iterations, pinv_init))
    exact = torch.softmax(scale * q[0, head] @ k[0, head].mT, -1)
    return Maps(exact, *(x[0, head] for x in factors))


def spectrum(
    query: Tensor, key: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Spectrum:
    """Singular values of softmax(s Q Kᵀ). Time O(H N³): seconds at 1,024 tokens.

    Raises:
        ValueError: If the sequence has more than 4,096 real tokens, or as `diagnose`.
    """
    check_query_key(query, key)
    q, k = _real_tokens(mask, query, key)
    _check_map_size(q, k)
    scale = softmax_scale(scale, query)
    heads = zip(q[0], k[0], strict=True)
    return Spectrum(
        torch.stack([torch.linalg.svdvals(torch.softmax(scale * x @ y.mT, -1)) for x, y in heads])
    )


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


def _factors(
    q: Tensor, k: Tensor, m: int, scale: float, pinv: Pinv
) -> tuple[Tensor, Tensor, Tensor]:
    return eager.factors(
        q,
        k,
        num_landmarks=m,
        mask=None,
        query_mask=None,
        scale=scale,
        pinv=pinv,
    )


def _map_error(q: Tensor, k: Tensor, factors: tuple[Tensor, Tensor, Tensor], scale: float) -> float:
    """A head at a time, since each map is N x N."""
    off = total = 0.0
    for query, key, kernel_1, inverse, kernel_3 in zip(
        q[0], k[0], *(x[0] for x in factors), strict=True
    ):
        exact = torch.softmax(scale * query @ key.mT, -1)
        off += float((kernel_1 @ inverse @ kernel_3 - exact).square().sum())
        total += float(exact.square().sum())
    return (off / total) ** 0.5


def _inverse(q: Tensor, k: Tensor, m: int, scale: float, pinv_init: str) -> Inverse:
    q_tilde, k_tilde = segment_means(q, m)[0], segment_means(k, m)[0]
    kernel_2 = torch.softmax(scale * q_tilde @ k_tilde.mT, -1)  # [1, H, M, M]
    start = pinv_start(kernel_2, pinv_init)
    c = (kernel_2.mT.norm(dim=(-2, -1)) / start.norm(dim=(-2, -1)))[..., None]  # [1, H, 1]
    sigma = torch.linalg.svdvals(kernel_2)  # [1, H, M]
    nonzero = sigma > m * torch.finfo(sigma.dtype).eps * sigma[..., :1]
    t = sigma**2 / c
    margin = t.masked_fill(~nonzero, torch.inf).min()
    residuals = []
    for _ in range(INVERSE_STEPS + 1):
        off = (1 - t).masked_fill(~nonzero, 0.0).norm(dim=-1) / nonzero.sum(-1).sqrt()
        residuals.append(float(off.max()))
        t = t * (13 - t * (15 - t * (7 - t))) / 4  # eq. 14
    return Inverse(tuple(residuals), float(margin), float((sigma[..., 0] / sigma[..., -1]).max()))


def _real_tokens(mask: Tensor | None, *tokens: Tensor) -> list[Tensor]:
    """Query, key[, value] of one sequence without its padding, in float64."""
    query, key = tokens[:2]
    if query.shape[0] != 1:
        raise ValueError(
            f"`query` must be one sequence, [1, H, N, D], got {query.shape[0]} of them; "
            "diagnose x[i : i + 1]."
        )
    check_mask("mask", mask, (1, key.shape[2]), key.device)
    if mask is not None:
        self_attention = query.shape[2] == key.shape[2]
        tokens = tuple(x[:, :, mask[0]] if self_attention or x is not query else x for x in tokens)
    if min(x.shape[2] for x in tokens) == 0:
        raise ValueError("The sequence has no real token; there is nothing to diagnose.")
    return [x.detach().double() for x in tokens]


def _check_map_size(q: Tensor, k: Tensor) -> None:
    n = max(q.shape[2], k.shape[2])
    if n > MAP_LIMIT:
        raise ValueError(
            f"The whole attention map is computed for at most {MAP_LIMIT} real tokens, got {n}; "
            "use `nystrom_attention_rows` for rows of it, or `diagnose` for its error."
        )


def _relative_error(x: Tensor, wanted: Tensor) -> float:
    return float((x - wanted).norm() / wanted.norm())
