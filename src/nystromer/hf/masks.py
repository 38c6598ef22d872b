"""Reads the masks that transformers hands to an attention function: which tokens are real?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask
from transformers.utils.import_utils import is_tracing


class UnusableMaskError(ValueError):
    """Is raised by a mask that says more than which tokens are real."""


def nystrom_mask(
    *,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """Makes the mask of a converted layer: bool [B, N], True at real tokens, or None for all real.

    A graph that is being traced cannot ask whether all are, and keeps the mask. What is not plain
    padding (causal, sliding window, packed) becomes the [B, 1, N, N] mask of
    scaled_dot_product_attention, never None, so that the attention function can tell.
    """
    if mask_function is bidirectional_mask_function:
        if attention_mask is None or is_tracing(attention_mask):
            return attention_mask
        return None if attention_mask.all() else attention_mask
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)


def key_mask(mask: Tensor | None, batch: int) -> Tensor | None:
    """Returns which tokens are real, bool [B, N], from any mask of transformers; None means all.

    Args:
        mask: [B, N] bool or integer; or [B or 1, 1, 1 or Nq, N], the same for every query: bool, or
            additive (0 at real tokens, -10,000 or less at padding). One for every head is a bias,
            be it zero today: BEiT's is before its training.
        batch: B.

    Raises:
        UnusableMaskError: If the mask differs between queries or heads, or is a bias.
    """
    if mask is None:
        return None
    if mask.dim() == 2 and not mask.is_floating_point():
        return mask.bool()
    if mask.dim() != 4 or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise UnusableMaskError(
            f"a mask of {mask.dtype} and shape {list(mask.shape)}; pass [B, N] with 1 at real "
            "tokens, or [B, 1, 1, N] as bool or additive"
        )
    if mask.is_floating_point():
        bias = "the mask carries a bias, which no mean of tokens can follow"
        if mask.shape[1] != 1:
            raise UnusableMaskError(bias)
        _check_values((mask == 0) | (mask <= -1e4), bias)
        mask = mask == 0
    if mask.shape[1:3] != (1, 1):
        message = "the mask differs between queries (causal, sliding or packed)"
        _check_values(mask == mask[:, :1, :1], message)
    return mask[:, 0, 0].expand(batch, -1)


def _check_values(fine: Tensor, message: str) -> None:
    """Raises the message unless all of `fine` is True.

    A graph that is being traced takes the check along: it fails when it runs.
    """
    if is_tracing(fine):
        torch._assert_async(fine.all(), message)
    elif not fine.all():
        raise UnusableMaskError(message)
