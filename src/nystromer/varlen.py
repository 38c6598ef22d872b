"""nystrom_attention_varlen: packed sequences, one behind the other, without padding."""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.checks import check_cu_seqlens, check_tensor, packed_lengths
from nystromer.functional import attend
from nystromer.pinv import Pinv


def nystrom_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    num_landmarks: int = 64,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
    pinv_ridge: float | None = None,
    conv_weight: Tensor | None = None,
    backend: str = "auto",
    enable_gqa: bool = False,
) -> Tensor:
    r"""`nystrom_attention` of every sequence of a packed batch alone, without padding.

    The layout is that of flash_attn_varlen_func and torch.nn.attention.varlen: the sequences stand
    one behind the other, sequence s has the tokens cu_seqlens[s] ... cu_seqlens[s + 1] - 1, and
    may be empty. There are no max_seqlen: they are read from cu_seqlens, whose values are copied
    to the host in every call. "native" and "blocked" run each sequence where it lies; the other
    backends get a padded batch. torch.compile and torch.export see T and the number of sequences as
    sizes that may change, and the lengths as data; "eager" then pads every sequence to T tokens.

    Args:
        query: Q, [Tq, H, D], the tokens of all sequences.
        key: K, [Tk, H, D].
        value: V, [Tk, H, Dv].
        cu_seqlens: Bounds of the S sequences among the queries, int32 or int64 [S + 1]: the
            cumulative sum of their lengths behind a 0.
        cu_seqlens_k: Bounds among the keys, for cross-attention; None means `cu_seqlens`.
        num_landmarks, scale, pinv_iterations, pinv_init, pinv_ridge, conv_weight, backend,
            enable_gqa: As `nystrom_attention`.

    Returns:
        [Tq, H, Dv], dtype of `value`.

    Raises:
        TypeError, ValueError, NotImplementedError: As `nystrom_attention`, or if bounds are not
            int [S + 1] on the tokens' device, do not start at 0, do not end at T, or decrease, or
            conv_weight is given with bounds for the keys that differ.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1500, 8, 64)  # each [T, H, D]: 900, 0 and 600 tokens
        >>> nystrom_attention_varlen(q, k, v, torch.tensor([0, 900, 900, 1500])).shape
        torch.Size([1500, 8, 64])
    """
    for name, x in {"query": query, "key": key, "value": value}.items():
        check_tensor(name, x)
        if x.dim() != 3:
            raise ValueError(
                f"`{name}` must be packed sequences [T, H, D], got {list(x.shape)}; a batch goes "
                "to nystrom_attention."
            )
    keys_alike = cu_seqlens_k is None or cu_seqlens_k is cu_seqlens
    cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    _check_bounds("cu_seqlens", cu_seqlens, query)
    _check_bounds("cu_seqlens" if keys_alike else "cu_seqlens_k", cu_seqlens_k, key)
    if cu_seqlens.shape != cu_seqlens_k.shape:
        raise ValueError(
            "`cu_seqlens` and `cu_seqlens_k` must bound as many sequences, got "
            f"{cu_seqlens.shape[0] - 1} and {cu_seqlens_k.shape[0] - 1}."
        )
    if conv_weight is not None and not keys_alike:
        raise ValueError(
            "`conv_weight` needs self-attention (it adds neighbouring values to a token's output), "
            "got `cu_seqlens_k`; leave one of them out."
        )
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    output = attend(
        q,
        k,
        v,
        mask=cu_seqlens_k,
        query_mask=cu_seqlens,
        num_landmarks=num_landmarks,
        scale=scale,
        pinv=Pinv(pinv_iterations, pinv_init, pinv_ridge),
        conv_weight=conv_weight,
        backend=backend,
        enable_gqa=enable_gqa,
    )
    return output[0].transpose(0, 1)


def _check_bounds(name: str, bounds: Tensor, tokens: Tensor) -> None:
    check_cu_seqlens(name, bounds, tokens.device)
    if not torch.compiler.is_compiling():
        packed_lengths(name, bounds, tokens.shape[0])
