"""All other implementations that ours is compared with, each without its projections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attention.plain import plain
from nystromer import nystrom_attention

HEADS, DIM, TAPS = 8, 64, 33
SAME, ESTIMATE, OTHER = "the same function", "an estimate of exact attention", "another function"
OTHERS = {  # what it computes, the package it comes from
    "plain PyTorch": (SAME, "torch"),
    "nystrom-attention": (SAME, "nystrom-attention"),
    "transformers": (SAME, "transformers"),
    "exact": ("exact attention", "torch"),
    "performer": (ESTIMATE, "performer-pytorch"),
    "linear-attention": (OTHER, "linear-attention-transformer"),
    "linformer": (OTHER, "linformer"),
    "flare": (OTHER, "torch"),
}


@dataclass(frozen=True)
class Case:
    """One of the others at one size.

    `num_landmarks` is also the number of random features of performer, of learnt mixtures of keys
    of linformer, and of learnt queries of flare.
    """

    against: str
    n: int
    num_landmarks: int
    dtype: str
    direction: str

    @property
    def backward(self) -> bool:
        return self.direction != "forward"

    @property
    def same(self) -> bool:
        return OTHERS[self.against][0] == SAME


class Between(nn.Module):
    """Calls attend(q, k, v, *parameters) on heads, [1, H, N, D], and takes and gives [1, N, E]."""

    def __init__(self, attend: Callable[..., Tensor], *parameters: Tensor) -> None:
        super().__init__()
        self.attend, self.own = attend, nn.ParameterList(parameters)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (x.unflatten(2, (HEADS, DIM)).transpose(1, 2) for x in (q, k, v))
        return self.attend(*heads, *self.own).transpose(1, 2).flatten(2)


class Given(nn.Module):
    """Stands in place of a projection and gives the value that was laid down."""

    def forward(self, _: Tensor) -> Any:
        return self.value


class Unprojected(nn.Module):
    """A layer whose projections (three, or one fused) are replaced by what they would give."""

    def __init__(self, layer: nn.Module, *projections: str) -> None:
        super().__init__()
        self.layer, self.given = layer, [Given() for _ in projections]
        for name, given in zip(projections, self.given, strict=True):
            setattr(layer, name, given)
        if hasattr(layer, "to_out"):
            layer.to_out = nn.Identity()

    def forward(self, *qkv: Tensor) -> Tensor:
        fused = len(self.given) == 1
        values = [SimpleNamespace(chunk=lambda *_, **__: qkv)] if fused else qkv
        for given, value in zip(self.given, values, strict=True):
            given.value = value
        output = self.layer(qkv[0])
        return output[0] if isinstance(output, tuple) else output


def flare(q: Tensor, k: Tensor, v: Tensor, latents: Tensor) -> Tensor:
    """Returns softmax(K Lᵀ) softmax(L Kᵀ) V for learnt L [H, M, D] (arXiv:2508.12594)."""
    latents = latents.expand(len(k), -1, -1, -1)
    read = F.scaled_dot_product_attention(latents, k, v, scale=1.0)
    return F.scaled_dot_product_attention(k, latents, read, scale=1.0)


def ours(case: Case, taps: Tensor, backend: str = "auto") -> nn.Module:
    """Returns ours as the other of the case computes it, if it does; else without convolution."""
    init = "matrix" if case.against == "plain PyTorch" else "sequence"

    def attend(q: Tensor, k: Tensor, v: Tensor, conv_weight: Tensor | None = None) -> Tensor:
        settings = {"num_landmarks": case.num_landmarks, "pinv_init": init, "backend": backend}
        return nystrom_attention(q, k, v, conv_weight=conv_weight, **settings)

    return Between(attend, taps) if case.same else Between(attend)


def other(case: Case, taps: Tensor) -> nn.Module:
    """Returns the other of the case, which takes and gives [1, N, E]."""
    n, m, width = case.n, case.num_landmarks, HEADS * DIM
    filters = nn.Parameter(taps[:, None, :, None])  # a Conv2d's
    match case.against:
        case "plain PyTorch":
            return Between(lambda q, k, v, taps: plain(q, k, v, m, taps), taps)
        case "nystrom-attention":
            from nystrom_attention import NystromAttention

            layer = NystromAttention(width, dim_head=DIM, heads=HEADS, num_landmarks=m)
            layer.res_conv.weight = filters
            return Unprojected(layer, "to_qkv")
        case "transformers":
            from transformers import NystromformerConfig
            from transformers.models.nystromformer import modeling_nystromformer

            config = NystromformerConfig(
                hidden_size=width,
                num_attention_heads=HEADS,
                num_landmarks=m,
                segment_means_seq_len=n,  # as m, it would be exact attention
                conv_kernel_size=TAPS,
                attention_probs_dropout_prob=0.0,
            )
            layer = modeling_nystromformer.NystromformerSelfAttention(config)
            layer.conv.weight = filters
            return Unprojected(layer, "query", "key", "value")
        case "exact":
            return Between(F.scaled_dot_product_attention)
        case "performer":
            from performer_pytorch import FastAttention

            return Between(FastAttention(DIM, nb_features=m))
        case "linear-attention":
            from linear_attention_transformer.linear_attention_transformer import linear_attn

            return Between(linear_attn)
        case "linformer":
            from linformer import LinformerSelfAttention

            layer = LinformerSelfAttention(width, n, k=m, heads=HEADS)
            return Unprojected(layer, "to_q", "to_k", "to_v")
        case "flare":
            return Between(flare, nn.Parameter(0.1 * torch.randn(HEADS, m, DIM)))
    raise ValueError(f"`against` must be one of {', '.join(OTHERS)}, got {case.against!r}.")
