"""Bags of at most M tokens in legacy mode, without the zeros that the old package puts before them.

It pads a bag of T tokens with z = M - T zeros, and every token is a landmark. The zeros are alike,
so that all tables of the attention are known on the T tokens and on e = (1, ..., 1)/√z over the
zeros, an orthonormal basis: [T + 1, T + 1] in place of [M, M]. What is orthogonal to it the table
A maps to zero, and so do its inverse's start and each of its steps.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from nystromer.backends.eager import convolution
from nystromer.compat.lucidrains import NystromAttention
from nystromer.precision import accumulation_dtype


def short_bags(attention: NystromAttention, x: Tensor) -> Tensor:
    """Returns the legacy attention(x) of every bag alone, [B, T, C].

    Args:
        attention: In legacy mode, with M landmarks.
        x: Bags of one size, [B, T, C] with T <= M.
    """
    q, k, v = attention.to_qkv(x).unflatten(2, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    dtype = accumulation_dtype(q.dtype)
    table, norm = _table(attention.scale * q.to(dtype), k.to(dtype), attention.num_landmarks)
    identity = torch.eye(table.shape[-1], dtype=dtype, device=x.device)
    z = table.mT / norm  # eq. 14, with one norm a bag
    for _ in range(attention.pinv_iterations):
        az = table @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    output = (table[:, :, 1:] @ z @ (table[..., 1:] @ v.to(dtype))).to(v.dtype)
    taps = attention._taps()
    if taps is not None:
        output = output + convolution(v, taps)
    return attention.to_out(output.transpose(1, 2).flatten(2))


def _table(query: Tensor, key: Tensor, num_landmarks: int) -> tuple[Tensor, Tensor]:
    """The softmax A in the basis (e, the tokens), [B, H, T + 1, T + 1], and ‖A‖_1 ‖A‖_inf of A over
    the heads of a bag, [B, 1, 1, 1]; the rows of A sum to one."""
    zeros = num_landmarks - query.shape[2]
    logits = query @ key.mT  # [B, H, T, T]; those to a zero are zero
    top = logits.amax(-1, keepdim=True).clamp(min=0)
    rows, to_zero = (logits - top).exp(), (-top).exp()
    mass = rows.sum(-1, keepdim=True) + zeros * to_zero
    rows, to_zero = rows / mass, to_zero / mass
    of_zeros = rows.new_full((*rows.shape[:2], 1, rows.shape[3] + 1), sqrt(zeros) / num_landmarks)
    of_zeros[..., 0] = zeros / num_landmarks  # eᵀ A e; A is 1/M in the rows of zeros
    table = torch.cat([of_zeros, torch.cat([sqrt(zeros) * to_zero, rows], -1)], -2)
    columns = rows.sum(-2, keepdim=True) + zeros / num_landmarks  # sums, [B, H, 1, T]
    if zeros:
        of_a_zero = to_zero.sum(-2, keepdim=True) + zeros / num_landmarks
        columns = torch.cat([of_a_zero, columns], -1)
    return table, columns.amax((1, 2, 3), keepdim=True)
