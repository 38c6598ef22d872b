"""Holds the function that transformers calls when `attn_implementation` is "nystrom".

The name stands for the interface: a module's `LayerChoice` says which attention it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from nystromer.gradients import zero_gradients
from nystromer.hf.conversion.attend import attend, repeated
from nystromer.hf.conversion.plan import NAMES, LayerChoice
from nystromer.hf.masks import UnusableMaskError, key_mask, nystrom_mask

NAME = "nystrom"
CHOICE, CONV = "nystrom_choice", "nystrom_conv"  # attributes of a converted attention module


def register(name: str, function: Any) -> None:
    """Registers an attention function with transformers, and our masks under the same name: without
    these transformers drops masks silently."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, nystrom_mask)


def nystrom_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes Nyström, clustered or exact attention, as the module's `LayerChoice` says.

    Shapes are transformers': query [B, H, N, D], key and value [B, Hkv, N, D]; returns
    ([B, N, H, D], None).

    Raises:
        ValueError: If a layer that is not exact is causal, is cross-attention, has a bias or a
            window, or drops out attention weights.
    """
    choice = getattr(module, CHOICE, None)
    if choice is None:
        choice = _default_choice(module)
    if choice.attention == "exact":
        return exact_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    reason = refusal(module, query, key, attention_mask, **kwargs)
    if reason is not None:
        raise ValueError(f"{choice.name} cannot use {NAMES[choice.attention]} attention: {reason}.")
    if dropout > 0:
        raise ValueError(
            f"{choice.name} drops out attention weights with p = {dropout}, and "
            f"{NAMES[choice.attention]} attention has none to drop; set the config's attention "
            "dropout to 0, or convert with nystromize."
        )
    key, value = repeated(query, key), repeated(query, value)
    mask = key_mask(attention_mask, query.shape[0])
    taps = getattr(module, CONV, None)
    output = attend(choice, query, key, value, mask, scaling, taps)
    if taps is not None:  # exact attention, of short sequences, has no convolution
        output = zero_gradients(output, [taps])
    return output.transpose(1, 2).contiguous(), None


def exact_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes transformers' own "sdpa" attention from a mask made by `nystrom_mask`."""
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask.bool()[:, None, None, :]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def refusal(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> str | None:
    """Returns why this call cannot be Nyström or clustered attention, or None if it can."""
    if getattr(module, "is_causal", False) if is_causal is None else is_causal:
        return "it is causal, and a landmark, the mean of many tokens, sees the future"
    if (
        query.shape[2] != key.shape[2]
        or getattr(module, "is_decoder", False)
        or "Cross" in type(module).__name__
    ):
        return "it is cross-attention or a decoder's"
    if position_bias is not None:
        return "it adds a position bias to every pair of tokens"
    if sliding_window is not None:
        return "it has a sliding window, which costs less already"
    for name in ("softcap", "s_aux", "cache"):
        if kwargs.get(name) is not None:
            return f"it uses {name}"
    try:
        key_mask(attention_mask, query.shape[0])
    except UnusableMaskError as error:
        return str(error)
    return None


def _default_choice(module: nn.Module) -> LayerChoice:
    """Returns the choice of a layer that nystromize has not seen, of a model loaded with
    `attn_implementation="nystrom"`: Nyström attention with M = 64."""
    if getattr(getattr(module, "config", None), "nystrom", None):
        raise RuntimeError(
            f"{type(module).__name__} is not among the layers that config.nystrom names; load the "
            "model with from_pretrained after `import nystromer.hf`, or call nystromize again."
        )
    return LayerChoice(type(module).__name__)


register(NAME, nystrom_attention_forward)
