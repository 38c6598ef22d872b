"""Bags of different sizes side by side: one padded tensor and the mask of its real patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

BLOCK = 8192  # patches whose features are in the dtype of the weights at a time


def pad_bags(bags: Sequence[Tensor], names: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """Returns bags [N, D] as one batch [B, N, D] in their dtype, and its mask, bool [B, N].

    Args:
        bags: The features of every bag; they differ in N alone.
        names: What an error calls them; "bag 0", "bag 1" and so on if there are none.

    Raises:
        ValueError: If a bag has no patches, or the bags differ in width or dtype.
    """
    names = names or [f"bag {i}" for i in range(len(bags))]
    for bag, name in zip(bags, names, strict=True):
        if bag.dim() != 2 or not len(bag):
            raise ValueError(
                f"A bag must be [N, D] with at least one patch, got {list(bag.shape)} from {name}; "
                "leave it out."
            )
        if (bag.shape[1], bag.dtype) != (bags[0].shape[1], bags[0].dtype):
            raise ValueError(
                f"Bags of one batch must share width and dtype, got {bags[0].shape[1]} "
                f"{bags[0].dtype} from {names[0]} and {bag.shape[1]} {bag.dtype} from {name}."
            )
    lengths = torch.tensor([len(bag) for bag in bags], device=bags[0].device)
    batch = bags[0][None] if len(bags) == 1 else pad_sequence(list(bags), batch_first=True)
    return batch, torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]


def real_patches(features: Tensor, mask: Tensor | None, width: int) -> Tensor:
    """Returns the mask of a batch that a model of this width can read, bool [B, N].

    Args:
        features: [B, N, D].
        mask: Real patches, bool [B, N]; None means all.
        width: D.

    Raises:
        ValueError: If shapes disagree or a bag has no patches.
    """
    if features.dim() != 3 or features.shape[2] != width:
        raise ValueError(
            f"`features` must be [B, N, D] with D = {width}, the width that this model was made "
            f"for, got {list(features.shape)}."
        )
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    if mask.shape != features.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"`mask` must be bool [B, N] = {list(features.shape[:2])} with True at real patches, "
            f"got {mask.dtype} {list(mask.shape)}."
        )
    empty = (~mask.any(1)).nonzero()
    if len(empty):
        raise ValueError(
            f"Every bag must have at least one patch, got none in bag {int(empty[0])} of the "
            "batch; leave it out."
        )
    return mask


def embedded(layer: nn.Module, features: Tensor) -> Tensor:
    """Returns what the first layer makes of patches, [B, N, C]; it is given BLOCK at a time.

    Args:
        layer: Makes rows [C] of rows [D], each for itself.
        features: [B, N, D], of any dtype.
    """
    dtype = next(layer.parameters()).dtype
    if features.dtype == dtype or features.numel() == 0:
        return layer(features)
    return torch.cat([layer(part.to(dtype)) for part in features.split(BLOCK, 1)], 1)


def alike(x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Returns x [B, T, C] as it is if its bags are of one size, else bag by bag, [1, T, C]."""
    if min(lengths) == x.shape[1]:
        return [x]
    return [bag[None, :n] for bag, n in zip(x, lengths, strict=True)]


def real_tokens(x: Tensor, lengths: Sequence[int]) -> dict[str, Tensor]:
    """Returns the mask of the real tokens of x, [B, T], or nothing if all are."""
    if min(lengths) == x.shape[1]:
        return {}
    ends = torch.tensor(lengths, device=x.device)[:, None]
    return {"mask": torch.arange(x.shape[1], device=x.device) < ends}
