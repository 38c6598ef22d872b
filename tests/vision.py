"""Attention modules with the parts of timm's: timm needs a torchvision that fits torch's build."""

import torch
from torch import nn
from torch.nn import functional as F


class VisionAttention(nn.Module):
    """As timm.layers.Attention: 24 features, 4 heads."""

    def __init__(self, qk_norm=False, scale_norm=False, attn_drop=0.1, head_dim=6, bias=True):
        super().__init__()
        self.num_heads, inner = 4, 4 * head_dim
        self.qkv = nn.Linear(24, 3 * inner, bias=bias)
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = nn.LayerNorm(inner) if scale_norm else nn.Identity()
        self.proj = nn.Linear(inner, 24)
        self.proj_drop = nn.Dropout(0.1)

    def project(self, x):
        return self.qkv(x)

    def forward(self, x, attn_mask=None, is_causal=False, turn=lambda q: q, gate=1.0):
        qkv = self.project(x).unflatten(2, (3, self.num_heads, -1))
        q, k, v = (y.transpose(1, 2) for y in qkv.unbind(2))
        q, k = turn(self.q_norm(q)), turn(self.k_norm(k))
        p = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask, p, is_causal)
        y = self.norm(y.transpose(1, 2).flatten(2)) * gate
        return self.proj_drop(self.proj(y))


class RopeAttention(VisionAttention):
    """As timm.layers.AttentionRope and EvaAttention: rotary positions in all but the first token,
    biases apart from their projection, a gate."""

    def __init__(self, rotate_half=False, gated=False, fused=True, **options):
        super().__init__(bias=False, **options)
        self.num_prefix_tokens, self.rotate_half = 1, rotate_half
        self.q_proj = self.k_proj = self.v_proj = self.q_bias = None
        if fused:
            self.q_bias, self.v_bias = (nn.Parameter(torch.randn(24)) for _ in range(2))
            self.register_buffer("k_bias", torch.zeros(24), persistent=False)
        else:
            self.qkv = None
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(24, 24) for _ in range(3))
        self.gate = nn.Linear(24, 24) if gated else None

    def project(self, x):
        if self.qkv is None:
            return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)
        return F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))

    def forward(self, x, rope=None, attn_mask=None, is_causal=False):
        def turn(q):
            """Pairs of features are complex numbers, times exp(i angle)."""
            pairs = (2, 3) if self.rotate_half else (3, 2)  # (i, i + 3), or (2 i, 2 i + 1)
            dim = -2 if self.rotate_half else -1
            real, imaginary = q[:, :, 1:].unflatten(-1, pairs).unbind(dim)
            sine, cosine = (y.unflatten(-1, pairs).select(dim, 0) for y in rope.chunk(2, -1))
            turned = torch.complex(real, imaginary) * torch.complex(cosine, sine)
            turned = torch.stack([turned.real, turned.imag], dim).flatten(-2)
            return torch.cat([q[:, :, :1], turned], 2)

        gate = 1.0 if self.gate is None else self.gate(x).sigmoid()
        turn = (lambda q: q) if rope is None else turn
        return super().forward(x, attn_mask, is_causal, turn, gate)


def rotary(n, rotate_half=False):
    """Sines and cosines [n - 1, 12] of random angles, one a pair of features."""
    angle = torch.rand(n - 1, 3) * 6
    angle = angle.repeat(1, 2) if rotate_half else angle.repeat_interleave(2, 1)
    return torch.cat([angle.sin(), angle.cos()], -1)


class Block(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(24), attn

    def forward(self, x, **options):
        return x + self.attn(self.norm1(x), **options)
