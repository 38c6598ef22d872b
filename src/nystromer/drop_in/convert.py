"""nystromize: Nyström attention in place of exact attention, in any module that exists."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from nystromer.drop_in import timm_layers, torch_layers
from nystromer.drop_in.options import Options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundLayer:
    """An attention module, and why it cannot be Nyström (None: it can)."""

    name: str
    module: nn.Module
    reason: str | None

    def __str__(self) -> str:
        return f"{self.name or 'the module itself'}: {self.reason}"


def nystromize(
    module: nn.Module,
    num_landmarks: int = 64,
    *,
    min_length: int | None = None,
    conv_kernel_size: int | None = None,
    layers: Sequence[int] | None = None,
    strict: bool = True,
) -> nn.Module:
    """Replaces softmax attention by Nyström attention in nn.MultiheadAttention (alone, in
    nn.TransformerEncoder or in anything else) and in timm's vision transformers, in place.

    Parameters and their names stay as they are, so weights load before and after. Sequences of
    fewer than `min_length` real tokens keep exact attention, each for itself, so batching changes
    nothing. The attention dropout of converted layers is set to 0. A module that is converted
    again takes the new options; its trained convolution stays where the kernel size does.

    A transformers model, or a module that holds one and no other attention (a SentenceTransformer),
    is handed to `nystromer.hf.nystromize`, which has more options.

    Args:
        module: Anything with such attention in it, or the attention itself.
        num_landmarks: M.
        min_length: Real tokens; None means 4 M.
        conv_kernel_size: K, odd: adds the paper's convolution over values to every converted layer,
            a parameter `nystrom_conv` [H, K] that starts at zero; None leaves it out.
        layers: Which of the attention layers, counted from 0 in the order of `named_modules`; the
            others stay as they are. None means all.
        strict: Whether a layer that cannot be converted is an error; if not it stays exact, and
            a line says so.

    Returns:
        The module.

    Raises:
        TypeError: If module is no nn.Module, or a number is no int.
        ValueError: If there is no attention in it, a layer cannot be converted (strict), a layer
            number does not exist, or a number is out of range. The module is unchanged then.

    Example:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(64, 4, batch_first=True)
        >>> encoder = nystromize(nn.TransformerEncoder(layer, 2).eval(), num_landmarks=32)
        >>> encoder(torch.randn(1, 2000, 64)).shape
        torch.Size([1, 2000, 64])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be an nn.Module, got {type(module).__name__}.")
    options = Options(num_landmarks, min_length, conv_kernel_size)
    found = attention_layers(module)
    if len(found) == 1 and _is_of_transformers(found[0].module):
        from nystromer.hf import nystromize as nystromize_model

        return nystromize_model(
            cast(Any, module),
            num_landmarks,
            min_length=min_length,
            conv_kernel_size=conv_kernel_size,
            layers=layers,
            strict=strict,
        )
    if not found:
        raise ValueError(
            f"`module` must hold nn.MultiheadAttention or the attention of a timm ViT, got "
            f"{type(module).__name__} with neither; build it with one of them, or with "
            "nystromer.NystromAttention."
        )
    chosen = [found[i] for i in _numbers(layers, len(found))]
    refused = [layer for layer in chosen if layer.reason is not None]
    if refused and strict:
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        raise ValueError(
            f"Nyström attention is impossible in {len(refused)} of {len(found)} attention layers "
            f"of {type(module).__name__}: {'; '.join(map(str, refused[:3]))}{more}. Leave them out "
            "of `layers`, or write strict=False to keep them exact."
        )
    name = type(module).__name__
    converted = [layer.module for layer in chosen if layer.reason is None]
    had_dropout = [_convert(x) for x in converted]
    for x in converted:
        options.give(x)
    torch_layers.without_nested_tensors(module)
    logger.warning(
        "%s: Nyström attention in %d of %d layers%s%s.",
        name,
        len(converted),
        len(found),
        ", their attention dropout is 0 from now on" if any(had_dropout) else "",
        "".join(f"; exact: {layer}" for layer in refused),
    )
    return module


def attention_layers(root: nn.Module) -> list[FoundLayer]:
    """Returns the attention modules within, in the order of `named_modules`: those that can be
    converted, and those that look like attention and cannot."""
    found: dict[nn.Module, FoundLayer] = {}  # a module that is used twice is one layer
    for layer in _walk("", root, in_decoder=False):
        found.setdefault(layer.module, layer)
    return list(found.values())


def _walk(name: str, module: nn.Module, in_decoder: bool) -> Iterator[FoundLayer]:
    in_decoder = in_decoder or isinstance(module, nn.TransformerDecoderLayer)
    if isinstance(module, nn.MultiheadAttention):
        reason = torch_layers.refusal(module)
        if in_decoder:
            reason = "nn.TransformerDecoderLayer is causal, and a landmark sees the future"
        yield FoundLayer(name, module, reason)
        return
    if _is_of_transformers(module):
        yield FoundLayer(name, module, "it is a transformers model, pass it to nystromize alone")
        return
    inner = [
        layer
        for child_name, child in module.named_children()
        for layer in _walk(f"{name}.{child_name}".lstrip("."), child, in_decoder)
    ]
    if not inner and timm_layers.looks_like_attention(module):
        inner = [FoundLayer(name, module, timm_layers.refusal(module))]
    yield from inner


def _convert(module: nn.Module) -> bool:
    """Makes the module Nyström, all but its options; returns whether it had dropout."""
    if isinstance(module, nn.MultiheadAttention):
        return torch_layers.convert(module)
    return timm_layers.convert(module)


def _numbers(layers: Sequence[int] | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    for i in layers:
        if not isinstance(i, int) or not 0 <= i < count:
            raise ValueError(
                f"`layers` must be numbers in 0 ... {count - 1}, got {i!r}; the module has {count} "
                "attention layers."
            )
    return sorted(set(layers))


def _is_of_transformers(module: nn.Module) -> bool:
    """Without an import: a model of transformers exists only where its module was loaded."""
    loaded = sys.modules.get("transformers.modeling_utils")
    return loaded is not None and isinstance(module, loaded.PreTrainedModel)
