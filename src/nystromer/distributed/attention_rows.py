"""Rows of the approximate attention map of a sequence whose parts lie in several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from nystromer import attention_rows
from nystromer.checks import check_rows
from nystromer.distributed.attention import (
    checked_case,
    device_of,
    landmarks,
    mixing,
    of_sequences,
)
from nystromer.distributed.call import Case, Whole, agreed
from nystromer.distributed.collectives import Group, group_of, largest, summed
from nystromer.landmarks import zero_padding
from nystromer.layout import unbatched
from nystromer.precision import accumulation_dtype, without_autocast


@torch.compiler.disable
def nystrom_attention_rows(
    query: Tensor,
    key: Tensor,
    rows: Tensor | Sequence[int],
    *,
    num_landmarks: int = 64,
    mask: Tensor | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
    pinv_ridge: float | None = None,
    enable_gqa: bool = False,
    group: Group | None = None,
    mesh: DeviceMesh | None = None,
) -> Tensor:
    r"""`nystromer.nystrom_attention_rows` of a sequence whose consecutive parts lie in the
    processes of a group, in the order of their ranks.

    Each process gets the columns of its own keys: what the queries at `rows` read of its part.

    Args:
        query, key: Of this part, [B, H, Nq, D] and [B, H, Nk, D].
        rows: Places of queries in the whole sequence, [R] ints, the same in every process.
        mask: Of this part, bool [B, Nk].
        num_landmarks, scale, pinv_iterations, pinv_init, pinv_ridge, enable_gqa: As
            `nystromer.nystrom_attention_rows`; the same in every process.
        group, mesh: As `nystromer.distributed.nystrom_attention`.

    Returns:
        [B, H, R, Nk], dtype of `query`; zero at padding and in the rows of padding.

    Raises:
        TypeError, ValueError, RuntimeError: As `nystromer.distributed.nystrom_attention`, or if a
            row is not in the whole sequence.
    """
    group = group_of(group, mesh)
    settings: dict[str, Any] = {
        "num_landmarks": num_landmarks,
        "mask": mask,
        "scale": scale,
        "pinv_iterations": pinv_iterations,
        "pinv_init": pinv_init,
        "pinv_ridge": pinv_ridge,
        "enable_gqa": enable_gqa,
    }
    if dist.get_world_size(group) == 1:
        return attention_rows.nystrom_attention_rows(query, key, rows, **settings)
    rest: dict[str, Any] = {"query_mask": None, "conv_weight": None, "backend": "eager"}
    checked: Callable[[], Case] = lambda: checked_case(  # noqa: E731
        query, key, key, rows=len(rows), **settings, **rest
    )
    case, whole = agreed(checked, device_of(query), group)
    places = check_rows(rows, sum(whole.queries.lengths), case.query.device)
    with without_autocast(case.query):
        return unbatched(_rows(case, whole, places, group), query)


def _rows(case: Case, whole: Whole, places: Tensor, group: Group) -> Tensor:
    mask = whole.keys.mask
    q_tilde, k_tilde = landmarks(case, whole, group)
    key = zero_padding(case.key.to(q_tilde.dtype), mask)
    query, real = _queries_at(places, case, whole, group)
    kernel_1 = torch.softmax(case.scale * query @ k_tilde.mT, -1)
    weights = kernel_1 @ mixing(case, whole, q_tilde, k_tilde)
    result = _read(weights, case.scale * q_tilde, key, mask, group)
    if any(whole.exact):  # Lemma 2
        each = torch.eye(len(places), dtype=query.dtype, device=query.device)
        own = _read(each, case.scale * query, key, mask, group)
        result = torch.where(of_sequences(whole.exact, key.device), own, result)
    if mask is not None:
        result = result.masked_fill(~mask[:, None, None], 0.0)
    return (result * real[..., None]).to(case.query.dtype)


def _queries_at(places: Tensor, case: Case, whole: Whole, group: Group) -> tuple[Tensor, Tensor]:
    """The queries at these places of the whole, [B, H, R, D], and which are real, [B, 1, R]."""
    side, n = whole.queries, case.query.shape[2]
    here = (places >= side.first) & (places < side.first + n)
    dtype = accumulation_dtype(case.query.dtype)
    if n == 0:
        query = case.query.new_zeros(*case.query.shape[:2], len(places), case.query.shape[3])
        query = query.to(dtype) + case.query.sum()  # keeps the graph
        real = query.new_zeros(len(query), len(places))
    else:
        local = (places - side.first).clamp(0, n - 1)
        query = case.query[:, :, local].to(dtype).masked_fill(~here[:, None], 0.0)
        real = here.expand(len(query), -1)
        if side.mask is not None:
            real = real & side.mask[:, local]
    query = zero_padding(query, real.bool())
    return summed(query, group), summed(real[:, None].to(dtype), group)


def _read(weights: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, group: Group) -> Tensor:
    """This part's columns of weights · softmax(query Kᵀ) over the keys of all, [B, H, R, Nk]."""
    if key.shape[2] == 0:
        log_mass = query[..., :1].detach() * 0 - torch.inf
    else:
        log_mass = attention_rows.log_masses(query, key, mask)
    top = largest(log_mass, group)
    top = torch.where(top.isinf(), 0.0, top)  # no key anywhere
    log_mass = top + summed((log_mass - top).exp(), group).log()
    if key.shape[2] == 0:
        return weights @ query @ key.mT
    return attention_rows.weighted_columns(weights, query, key, mask, log_mass)
