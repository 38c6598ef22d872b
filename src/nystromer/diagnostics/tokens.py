"""What all diagnostics begin with: the real tokens of one sequence in float64, and checks."""

from __future__ import annotations

from torch import Tensor

from nystromer.backends import eager
from nystromer.checks import check_mask
from nystromer.pinv import Pinv

MAP_LIMIT = 4096  # tokens up to which an N x N map is computed


def real_tokens(mask: Tensor | None, *tokens: Tensor) -> list[Tensor]:
    """Returns query, key and maybe value of one sequence without its padding, in float64.

    Raises:
        ValueError: If there is not exactly one sequence, or no real token in it.
    """
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


def check_map_size(q: Tensor, k: Tensor) -> None:
    """
    Raises:
        ValueError: If the sequence is too long for a whole attention map.
    """
    n = max(q.shape[2], k.shape[2])
    if n > MAP_LIMIT:
        raise ValueError(
            f"The whole attention map is computed for at most {MAP_LIMIT} real tokens, got {n}; "
            "use `nystrom_attention_rows` for rows of it, or `diagnose` for its error."
        )


def relative_error(x: Tensor, wanted: Tensor) -> float:
    """Returns ‖x - wanted‖_F / ‖wanted‖_F."""
    return float((x - wanted).norm() / wanted.norm())


def factors_of(
    q: Tensor, k: Tensor, m: int, scale: float, pinv: Pinv
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns kernel_1, the inverse and kernel_3: [1, H, Nq, M], [1, H, M, M], [1, H, M, Nk]."""
    return eager.factors(q, k, num_landmarks=m, mask=None, query_mask=None, scale=scale, pinv=pinv)
