"""The function that transformers calls when `attn_implementation` is "nystrom"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from nystromer.functional import nystrom_attention
from nystromer.hf.masks import UnusableMaskError, key_mask, nystrom_mask
from nystromer.hf.plan import LayerChoice
from nystromer.landmarks import kmeans

NAME = "nystrom"
KMEANS_STEPS = 3  # ten cost three times as much and are no better (docs/log.md)
CHOICE, CONV = "nystrom_choice", "nystrom_conv"  # attributes of a converted attention module


def register(name: str, function: Any) -> None:
    """Attention and mask under one name. Without the second transformers drops masks silently."""
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
    """Nyström or exact attention, as the module's `LayerChoice` says. Shapes are transformers':
    query [B, H, N, D], key and value [B, Hkv, N, D]; returns ([B, N, H, D], None).

    Raises:
        ValueError: If a Nyström layer is causal, is cross-attention, has a bias or a window, or
            drops out attention weights.
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
        raise ValueError(f"{choice.name} cannot use Nyström attention: {reason}.")
    if dropout > 0:
        raise ValueError(
            f"{choice.name} drops out attention weights with p = {dropout}, and Nyström attention "
            "has none; set the config's attention dropout to 0, or convert with nystromize."
        )
    key, value = repeated(query, key), repeated(query, value)
    mask = key_mask(attention_mask, query.shape[0])
    output = attend(choice, query, key, value, mask, scaling, getattr(module, CONV, None))
    return output.transpose(1, 2).contiguous(), None


def exact_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' own "sdpa", for masks made by `nystrom_mask`."""
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask.bool()[:, None, None, :]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def attend(
    choice: LayerChoice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    conv_weight: Tensor | None = None,
) -> Tensor:
    """[B, H, N, Dv]: Nyström attention for the sequences of at least `choice.exact_below` real
    tokens, exact attention for the others. The rule is per sequence: batching changes nothing.
    `choice.exact_heads` are exact everywhere."""
    if choice.exact_heads:
        return _attend_by_head(choice, query, key, value, mask, scaling, conv_weight)

    def nystrom(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return nystrom_attention(
            q,
            k,
            v,
            num_landmarks=choice.num_landmarks,
            mask=mask,
            scale=scaling,
            conv_weight=None if conv_weight is None else conv_weight.to(q.dtype),
            landmarks=landmarks_of(choice, q, k, mask),
            pinv_ridge=choice.ridge,
        )

    def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        hidden = None if mask is None else mask[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, hidden, scale=scaling)

    if mask is None:
        return (nystrom if query.shape[2] >= choice.exact_below else exact)(query, key, value, None)
    long = mask.sum(1) >= choice.exact_below
    if long.all():
        return nystrom(query, key, value, mask)
    if not long.any():
        return exact(query, key, value, mask)
    output = value.new_zeros(*query.shape[:3], value.shape[3])
    rows = long.nonzero()[:, 0]
    output = output.index_copy(0, rows, nystrom(query[rows], key[rows], value[rows], mask[rows]))
    rows = (~long).nonzero()[:, 0]
    used = mask[rows].any(0).nonzero()[:, 0]  # a short sequence costs its own length squared
    q, k, v = (x[rows][:, :, used] for x in (query, key, value))
    part = exact(q, k, v, mask[rows][:, used])
    return output.index_copy(0, rows, output[rows].index_copy(2, used, part))


def landmarks_of(
    choice: LayerChoice, query: Tensor, key: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """(Q~, K~), each [B, H, M, D]; None for segment means, which `nystrom_attention` takes."""
    if choice.landmarks == "segment_means":
        return None
    tokens = torch.cat([query, key], -1)  # one partition of the tokens for both
    centres, _ = kmeans(tokens, choice.num_landmarks, mask, iterations=KMEANS_STEPS)
    return centres[..., : query.shape[3]], centres[..., query.shape[3] :]


def repeated(query: Tensor, x: Tensor) -> Tensor:
    """Keys or values of grouped heads, once for every query head."""
    groups = query.shape[1] // x.shape[1]
    return x.repeat_interleave(groups, 1) if groups > 1 else x


def _attend_by_head(
    choice: LayerChoice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    conv_weight: Tensor | None,
) -> Tensor:
    exact = list(choice.exact_heads)
    others = [h for h in range(query.shape[1]) if h not in exact]
    near = replace(choice, exact_heads=())
    hidden = None if mask is None else mask[:, None, None]
    q, k, v = (x[:, exact] for x in (query, key, value))
    parts = [F.scaled_dot_product_attention(q, k, v, hidden, scale=scaling)]
    if mask is not None:  # rows of padding are zero, as Nyström attention's
        parts = [parts[0].masked_fill(~mask[:, None, :, None], 0.0)]
    if others:
        q, k, v = (x[:, others] for x in (query, key, value))
        taps = None if conv_weight is None else conv_weight[others]
        parts.append(attend(near, q, k, v, mask, scaling, taps))
    order = torch.tensor(exact + others, device=query.device).argsort()
    return torch.cat(parts, 1)[:, order]


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
    """Why this call cannot be Nyström attention, or None."""
    if getattr(module, "is_causal", False) if is_causal is None else is_causal:
        return "it is causal, and a landmark, the mean of a whole segment, sees the future"
    if (
        query.shape[2] != key.shape[2]
        or getattr(module, "is_decoder", False)
        or "Cross" in type(module).__name__
    ):
        return "it is cross-attention or a decoder's"
    if position_bias is not None:
        return "it adds a position bias to every pair of tokens"
    if sliding_window is not None:
        return "it has a sliding window, which costs less than landmarks already"
    for name in ("softcap", "s_aux", "cache"):
        if kwargs.get(name) is not None:
            return f"it uses {name}"
    try:
        key_mask(attention_mask, query.shape[0])
    except UnusableMaskError as error:
        return str(error)
    return None


def _default_choice(module: nn.Module) -> LayerChoice:
    """For `attn_implementation="nystrom"` without nystromize: M = 64 everywhere."""
    if getattr(getattr(module, "config", None), "nystrom", None):
        raise RuntimeError(
            f"{type(module).__name__} is not among the layers that config.nystrom names; load the "
            "model with from_pretrained after `import nystromer.hf`, or call nystromize again."
        )
    return LayerChoice(type(module).__name__)


register(NAME, nystrom_attention_forward)
