"""The class token's row of a Nyström attention, without the rows that nobody reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.compat.lucidrains import NystromAttention
from nystromer.functional import nystrom_attention
from nystromer.landmarks import segment_means


def class_row(attention: NystromAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Returns the first row of attention(x, mask), [B, C].

    Landmarks are means, and the projection is linear: Q~ = means(x) W_q, so that queries of other
    tokens are never made. The row is that of a cross-attention whose queries are the class token
    and, for more than M have to be there that Nyström attention is taken, the landmarks Q~. Keys
    and values are those of all tokens; two thirds of the projections, one of two N x M products,
    the convolution and the projection back are saved.

    Args:
        attention: In legacy mode for one bag of more than M tokens.
        x: Tokens, [B, T, C], the class token first.
        mask: Real tokens, bool [B, T].
    """
    heads, landmarks = attention.heads, attention.num_landmarks
    left = -x.shape[1] % landmarks if attention.mode == "legacy" else 0
    if x.shape[1] + left <= landmarks:  # short bags: the whole attention is small
        return attention(x, mask)[:, 0]
    if left:
        x = F.pad(x, (0, 0, left, 0))
    if mask is not None:
        x = x.masked_fill(~mask[..., None], 0.0)
    w_q, w_kv = attention.to_qkv.weight.tensor_split([attention.to_qkv.out_features // 3])
    means = segment_means(x[:, None], landmarks, mask)[0][:, 0].to(x.dtype)  # [B, M, C]
    k, v = F.linear(x, w_kv).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    k_tilde = F.linear(means, w_kv[: len(w_q)])
    queries = F.linear(torch.cat([x[:, left : left + 1], means], 1), w_q)
    q, k_tilde = (y.unflatten(2, (heads, -1)).transpose(1, 2) for y in (queries, k_tilde))
    row = nystrom_attention(
        q,
        k,
        v,
        mask=mask,
        landmarks=(q[:, :, 1:], k_tilde),
        backend=attention.backend,
        **attention._settings(),
    )[:, :, 0]  # [B, H, D]
    taps = attention._taps()  # [H, K]
    if taps is not None:  # the first token has neighbours on its right alone
        taps = taps[:, taps.shape[1] // 2 :]
        near = v[:, :, left : left + taps.shape[1]]
        row = row + torch.einsum("hk, bhkd -> bhd", taps[:, : near.shape[2]], near)
    return attention.to_out(row.flatten(1))
