"""nn.MultiheadAttention with Nyström attention, and what cannot be converted of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nystromer.checks import check_mask
from nystromer.drop_in.attend import attend

PADDING = -1e4  # a float mask that is as low or lower hides its token


class NystromMultiheadAttention(nn.MultiheadAttention):
    """The nn.MultiheadAttention that it was, with Nyström attention; made by `nystromize`.

    Parameters and their names are the same. `key_padding_mask` keeps torch's sense: True, or -inf
    in a float mask, marks padding. In self-attention, where query and key are one tensor, padding
    counts for queries too: their attention is zero, so their output is the output projection's
    bias. In cross-attention all queries count as real.
    """

    num_landmarks: int
    exact_below: int
    nystrom_conv: nn.Parameter | None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Returns (output, None); shapes are those of nn.MultiheadAttention.

        Raises:
            ValueError: If weights, a mask of query-key pairs or causal attention are asked for,
                an input is nested, a float mask carries a bias, or there is a convolution in
                cross-attention.
        """
        self._refuse(query, key, need_weights, attn_mask, is_causal)
        mask = real_tokens(key_padding_mask)
        same = _are_one(query, key)
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            mask = None if mask is None else mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        check_mask("key_padding_mask", mask, (key.shape[0], key.shape[1]), key.device)

        q, k, v = (
            F.linear(x, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), *self._projections(), strict=True)
        )  # [B, H, N, D]
        heads = attend(
            q,
            k,
            v,
            mask,
            num_landmarks=self.num_landmarks,
            exact_below=self.exact_below,
            self_attention=same,
            conv_weight=self.nystrom_conv,
        )
        output = self.out_proj(heads.transpose(1, 2).flatten(2))  # [B, N, E]
        if not batched:
            return output[0], None
        return output if self.batch_first else output.transpose(0, 1), None

    def _projections(self) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Returns the weights of queries, keys and values, and their biases."""
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        return weights, (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = False  # as `convert`

    def _refuse(
        self,
        query: Tensor,
        key: Tensor,
        need_weights: bool,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        if need_weights:
            raise ValueError(
                "need_weights=True is impossible with Nyström attention, got a call for the N x N "
                "weights, which it never computes; leave the argument out (the weights are None "
                "then), or keep this layer exact with `layers`."
            )
        if attn_mask is not None or is_causal:
            given = "is_causal=True" if attn_mask is None else "an `attn_mask`"
            raise ValueError(
                f"{given} (`src_mask` of an encoder layer) is impossible with Nyström attention, "
                "whose landmarks mix tokens from everywhere; pass padding as `key_padding_mask`, "
                "or keep this layer exact with `layers`."
            )
        if query.dim() not in (2, 3):
            raise ValueError(
                "`query` must be [B, N, E] (or [N, B, E] without batch_first), or [N, E] for one "
                f"sequence, got {query.dim()} dimensions."
            )
        if query.is_nested or key.is_nested:
            raise ValueError(
                "`query` and `key` must be padded tensors, got nested ones; if an "
                "nn.TransformerEncoder made them of padded input, convert the encoder instead of "
                "its layers, or set its use_nested_tensor to False."
            )
        if self.nystrom_conv is not None and not _are_one(query, key):
            raise ValueError(
                "`conv_kernel_size` needs self-attention (the convolution adds neighbouring values "
                "to a token's output), got a query that is not the key; convert without it."
            )

    def extra_repr(self) -> str:
        return f"num_landmarks={self.num_landmarks}, exact below {self.exact_below} tokens"


def real_tokens(key_padding_mask: Tensor | None) -> Tensor | None:
    """Returns bool, True at real tokens, from torch's key_padding_mask, which means the opposite.

    Raises:
        TypeError: If it is neither bool nor floating point.
        ValueError: If it is floating point with numbers other than 0 and -inf (or -10,000 and
            less). torch.compile cannot look at numbers: there what is above -10,000 is real.
    """
    if key_padding_mask is None:
        return None
    if key_padding_mask.dtype == torch.bool:
        return ~key_padding_mask
    if not key_padding_mask.is_floating_point():
        raise TypeError(
            "`key_padding_mask` must be bool with True at padding, or floating point with -inf "
            f"there, got {key_padding_mask.dtype}; write key_padding_mask.bool() if nonzero marks "
            "padding."
        )
    real = key_padding_mask > PADDING
    if not torch.compiler.is_compiling() and (key_padding_mask[real] != 0).any():
        raise ValueError(
            "`key_padding_mask` must be 0 at real tokens and -inf at padding, got other numbers: "
            "a bias, which no landmark can follow; pass a bool mask with True at padding."
        )
    return real


def _are_one(query: Tensor, key: Tensor) -> bool:
    """Returns whether both are one tensor, or one view of it (mha(x[0], x[0], x[0])).

    torch.compile knows no memory: there a view made twice is two tensors.
    """
    if query is key or torch.compiler.is_compiling():
        return query is key
    return bool(
        torch._C._is_alias_of(query, key)  # type: ignore[attr-defined]
        and query.storage_offset() == key.storage_offset()
        and (query.shape, query.stride()) == (key.shape, key.stride())
    )


def refusal(module: nn.MultiheadAttention) -> str | None:
    """Returns why this module cannot be converted, or None."""
    if type(module) not in (nn.MultiheadAttention, NystromMultiheadAttention):
        return f"{type(module).__name__} changes nn.MultiheadAttention in ways of its own"
    if module.bias_k is not None or module.bias_v is not None:
        return "add_bias_kv=True adds a learned key that is no token"
    if module.add_zero_attn:
        return "add_zero_attn=True adds a key of zeros that is no token"
    return None


def convert(module: nn.MultiheadAttention) -> bool:
    """Makes the module Nyström in place, all but its options; returns whether it had dropout."""
    module.__class__ = NystromMultiheadAttention
    # torch's encoder layer reads it before its fast path, which calls no self_attn.forward
    module._qkv_same_embed_dim = False
    had_dropout, module.dropout = module.dropout > 0, 0.0
    return had_dropout


def without_nested_tensors(root: nn.Module) -> None:
    """Stops each nn.TransformerEncoder with a converted layer from nesting its padded input."""
    for encoder in root.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(module, NystromMultiheadAttention) for module in encoder.modules()
        ):
            encoder.use_nested_tensor = False
