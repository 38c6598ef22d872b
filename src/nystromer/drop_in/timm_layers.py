"""The attention of timm's vision transformers with Nyström attention, recognised by its parts."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from nystromer.drop_in.attend import attend
from nystromer.drop_in.options import Options

PARTS = {  # of timm's Attention, AttentionRope and EvaAttention
    *("qkv", "q_proj", "k_proj", "v_proj", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm"),
    *("attn_drop", "norm", "gate", "proj", "proj_drop", "nystrom_conv"),
}
TOKENS = 50  # of the made-up image on which a layer is tried


class NystromVisionAttention(nn.Module):
    """An attention of timm's ViT with Nyström attention; made by `nystromize`.

    Parameters, buffers, children and their names are those of the module that it was.
    """

    num_heads: int
    num_prefix_tokens: int
    proj: nn.Module
    num_landmarks: int
    exact_below: int
    nystrom_conv: nn.Parameter | None

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        **others: Tensor | None,
    ) -> Tensor:
        """x: [B, N, E]; returns [B, N, E]. Everything else that a block may pass is refused unless
        it is None.

        Raises:
            ValueError: If a mask, a bias or causal attention are asked for.
        """
        _refuse(attn_mask=attn_mask, is_causal=is_causal or None, **others)
        return self._attend(x, None)

    def _attend(self, x: Tensor, rope: Tensor | None) -> Tensor:
        q, k, v = self._heads(x)  # [B, H, N, D]
        q, k = self._optional("q_norm", q), self._optional("k_norm", k)
        if rope is not None:
            q, k = (self._rotated(y, rope).type_as(v) for y in (q, k))
        heads = attend(
            q,
            k,
            v,
            num_landmarks=self.num_landmarks,
            exact_below=self.exact_below,
            conv_weight=self.nystrom_conv,
        )
        output = self._optional("norm", heads.transpose(1, 2).flatten(2))
        gate: nn.Module | None = getattr(self, "gate", None)
        if gate is not None:
            output = output * gate(x).sigmoid()
        return self._optional("proj_drop", self.proj(output))

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        fused: nn.Module | None = getattr(self, "qkv", None)
        if fused is None:
            parts = [getattr(self, f"{name}_proj")(x) for name in "qkv"]
            return tuple(y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in parts)
        qkv = fused(x)
        if getattr(self, "q_bias", None) is not None:
            qkv = qkv + torch.cat([getattr(self, f"{name}_bias") for name in "qkv"])
        return qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def _optional(self, name: str, x: Tensor) -> Tensor:
        child: nn.Module | None = getattr(self, name, None)
        return x if child is None else child(x)

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        """Rotary positions, sines and cosines [..., N - prefix, 2 D], in all but the prefix."""
        prefix, x = x.split([self.num_prefix_tokens, x.shape[2] - self.num_prefix_tokens], 2)
        sine, cosine = rope.chunk(2, -1)
        if getattr(self, "rotate_half", False):
            first, second = x.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return torch.cat([prefix, x * cosine + turned * sine], 2)

    def extra_repr(self) -> str:
        return f"num_landmarks={self.num_landmarks}, exact below {self.exact_below} tokens"


class NystromRopeAttention(NystromVisionAttention):
    """The same for the classes whose second argument is a rotary position embedding."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        **others: Tensor | None,
    ) -> Tensor:
        """x: [B, N, E]; rope: [..., N - prefix, 2 D] or None; returns [B, N, E].

        Raises:
            ValueError: If a mask, a bias or causal attention are asked for.
        """
        _refuse(attn_mask=attn_mask, is_causal=is_causal or None, **others)
        return self._attend(x, rope)


def looks_like_attention(module: nn.Module) -> bool:
    """Returns whether the module seems to be an attention in timm's manner, plain or not."""
    heads = getattr(module, "num_heads", None)
    projects = any(isinstance(x, (nn.Linear, nn.Conv2d)) for x in module.children())
    return (isinstance(heads, int) or hasattr(module, "fused_attn")) and (
        projects or hasattr(module, "qkv")
    )


def refusal(module: nn.Module) -> str | None:
    """Returns why this module cannot be converted, or None.

    Its parts must be those of timm's attention, and on a made-up image, with weights drawn anew in
    a copy, it must compute what the converted one computes in exact attention.
    """
    if isinstance(module, NystromVisionAttention):
        return None
    parts = {**module._modules, **module._parameters, **module._buffers}
    others = sorted(name for name, x in parts.items() if x is not None and name not in PARTS)
    if others:
        return f"it has {', '.join(others)}, which no plain attention of a ViT has"
    if getattr(module, "window_size", None) or getattr(module, "ws", None):
        return "it attends within windows, which costs less already"
    if parts.get("proj") is None or not (
        parts.get("qkv") or all(parts.get(f"{x}_proj") for x in "qkv")
    ):
        return "it has other projections than `qkv` (or `q_proj`, `k_proj`, `v_proj`) and `proj`"
    return _difference(module)


def convert(module: nn.Module) -> bool:
    """Makes the module Nyström in place, all but its options; returns whether it had dropout."""
    if not isinstance(module, NystromVisionAttention):
        kind = NystromRopeAttention if _takes_rope(module) else NystromVisionAttention
        module.__class__ = kind
    dropout = getattr(module, "attn_drop", None)
    if not isinstance(dropout, nn.Dropout):
        return False
    had_dropout, dropout.p = dropout.p > 0, 0.0
    return had_dropout


@torch.no_grad()
def _difference(module: nn.Module) -> str | None:
    """Returns what distinguishes the module from plain attention, if anything does."""
    generator = torch.Generator().manual_seed(0)  # the user's own is not touched

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    try:
        twin: Any = copy.deepcopy(module).to_empty(device="cpu").float().eval()
        for weight in (*twin.parameters(), *twin.buffers()):
            weight.copy_(draw(*weight.shape) * weight.shape[-1] ** -0.5)
        projection = twin.q_proj if getattr(twin, "qkv", None) is None else twin.qkv
        x = draw(1, TOKENS, projection.in_features)
        options: dict[str, Tensor] = {}
        if _takes_rope(module):
            dim = twin.proj.in_features // twin.num_heads
            angle = draw(TOKENS - twin.num_prefix_tokens, 1).expand(-1, dim)
            options["rope"] = torch.cat([angle.sin(), angle.cos()], -1)
        with torch.autocast("cpu", enabled=False):
            expected = type(module).forward(twin, x, **options)
            convert(twin)
            Options(min_length=TOKENS + 1).give(twin)  # exact
            got = twin(x, **options)
    except Exception as error:
        return f"it could not be tried on tokens [1, {TOKENS}, E] ({error})"
    if isinstance(expected, Tensor) and torch.allclose(got, expected, 1e-4, 1e-4):
        return None
    return "it computes something else than softmax attention"


def _takes_rope(module: nn.Module) -> bool:
    return "rope" in inspect.signature(type(module).forward).parameters


def _refuse(**given: object) -> None:
    for name, x in given.items():
        if x is not None:
            raise ValueError(
                f"`{name}` is impossible with Nyström attention, whose landmarks mix tokens from "
                "everywhere; call the model without it, or keep this layer exact with `layers`."
            )
