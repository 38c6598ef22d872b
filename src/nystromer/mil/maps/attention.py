"""Attention and rollout: how much of a patch arrives at the bag, whatever it then says."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nystromer.mil.models import ABMIL, TransMIL
from nystromer.mil.models.batch import embedded
from nystromer.mil.models.transmil import Layer


@torch.no_grad()
def attention(
    model: TransMIL | ABMIL, features: Tensor, layer: int | None = None, head: int | None = None
) -> Tensor:
    r"""Returns the class token's row of a layer's attention map, [N]; of ABMIL its weights.

    s_n = mean over heads of (kernel_1 kernel_2⁺ kernel_3)[0, n], computed without the map.

    Args:
        model: TransMIL or ABMIL.
        features: [N, D].
        layer: From 1; the last if None.
        head: From 1; the mean of all if None.

    Raises:
        ValueError: If the model has no such layer or head.
    """
    if isinstance(model, ABMIL):
        for name, number in (("layer", layer), ("head", head)):
            check_number(name, number, 1)
        return model.attention(features[None])[0]
    check_number("layer", layer, model.num_layers)
    check_number("head", head, model.num_heads)
    for number, (block, x) in enumerate(_layers(model, features), 1):
        if number == (layer or model.num_layers):
            rows = block.attn.attention_rows(block.norm(x), [0])[0, :, 0]  # [H, T]
            return folded(_of_head(rows, head), len(features))
    raise AssertionError


@torch.no_grad()
def rollout(model: TransMIL, features: Tensor, head: int | None = None) -> Tensor:
    r"""Returns the class token's row of (A_L + I)/2 · … · (A_1 + I)/2, [N].

    A_l is the mean over heads of layer l's map; adding I stands for the residual connection (Abnar
    and Zuidema 2020, arXiv:2005.00928). The row is carried from the last layer to the first through
    the three factors of each map, r ← (r + ((r kernel_1) kernel_2⁺) kernel_3)/2, so that no
    N x N matrix is made. The convolutions between the layers are not seen.

    Args:
        model: TransMIL.
        features: [N, D].
        head: From 1, the same in all layers; the mean of all if None.

    Raises:
        ValueError: If the model has no such head.
    """
    check_number("head", head, model.num_heads)
    blocks = list(_layers(model, features))
    row = torch.zeros(1, 1, blocks[0][1].shape[1])
    row[..., 0] = 1.0
    for block, x in reversed(blocks):
        carried = block.attn.weighted_attention_rows(block.norm(x), row)  # [1, H, 1, T]
        row = (row + _of_head(carried[0, :, 0], head)) / 2
    return folded(row[0, 0], len(features))


def folded(row: Tensor, patches: int) -> Tensor:
    """Returns what falls on every patch, [N], of a row over all tokens, [1 + S²].

    The class token is left out, and what falls on a patch's second copy is added to the first.
    """
    first, again = row[1 : 1 + patches], row[1 + patches :]
    return torch.cat([first[: len(again)] + again, first[len(again) :]])


def check_number(name: str, number: int | None, most: int) -> None:
    """Says that a model has no such layer or head.

    Raises:
        ValueError: If it has not.
    """
    if number is not None and not 1 <= number <= most:
        raise ValueError(f"`--{name}` must lie in 1 ... {most} for this model, got {number}.")


def _layers(model: TransMIL, features: Tensor) -> Iterator[tuple[Layer, Tensor]]:
    h = embedded(model.embed, features[None])
    return ((layer, x) for layer, x, _ in model.layers(h))


def _of_head(rows: Tensor, head: int | None) -> Tensor:
    """One row [T] of those of all heads, [H, T]."""
    return rows.mean(0) if head is None else rows[head - 1]
