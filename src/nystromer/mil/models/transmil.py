"""TransMIL (Shao et al. 2021, arXiv:2106.00908) on our operation; its twin with exact attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nystromer.checks import check_positive
from nystromer.compat.lucidrains import NystromAttention
from nystromer.mil.models.batch import alike, embedded, pad_bags, real_patches, real_tokens
from nystromer.mil.models.class_row import class_row
from nystromer.mil.models.ppeg import PPEG, missing
from nystromer.mil.models.short_bags import short_bags

ROWS = 256  # of exact attention maps, at a time
MODES = ("fixed", "legacy", "exact")


class TransMIL(nn.Module):
    r"""Patches embedded, repeated up to a square, two attentions around a pyramid of convolutions.

    h = relu(W x) of N patches, of which the first are repeated until there are S² ≥ N; a class
    token in front; x + attention(norm(x)); PPEG, convolutions over the S x S square; the second
    attention; norm and head of the class token. A bag in a batch gets what it gets alone.

    Args:
        width: D, features of a patch.
        num_classes: Logits of a bag.
        mode: "fixed": the operation of this library. "legacy": the numbers of nystrom-attention
            0.0.14, which published weights were trained with. "exact": softmax attention.
        embed_dim: C; a head has C / num_heads features.
        num_heads: H.
        num_landmarks: M; half of embed_dim if None.
        conv_kernel_size: Taps of the convolution over values; None leaves it out.
        num_layers: Attentions; the PPEG stands behind the first.
        dropout: On the output of every attention.
        relu: Whether the embedding ends in a ReLU, which torchmil leaves out.

    Raises:
        ValueError: If the mode is none of the three or C is no multiple of H.

    Example:
        >>> import torch
        >>> model = TransMIL(width=384, num_classes=2, embed_dim=64)
        >>> model(torch.randn(1, 1000, 384)).shape
        torch.Size([1, 2])
    """

    shared_sequence: Any = None  # a SharedSequence, of nystromer.distributed.sequence_parallel

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        mode: str = "fixed",
        embed_dim: int = 512,
        num_heads: int = 8,
        num_landmarks: int | None = None,
        conv_kernel_size: int | None = 33,
        num_layers: int = 2,
        dropout: float = 0.1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got {mode!r}.")
        check_positive("num_heads", num_heads)
        if embed_dim % num_heads:
            raise ValueError(
                f"`embed_dim` must be a multiple of num_heads={num_heads}, got {embed_dim}."
            )
        landmarks = embed_dim // 2 if num_landmarks is None else num_landmarks
        check_positive("num_landmarks", landmarks)
        self.width, self.num_layers, self.num_heads = width, num_layers, num_heads
        self.mode = mode
        self._fc1 = nn.Sequential(nn.Linear(width, embed_dim), nn.ReLU() if relu else nn.Identity())
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_layer = PPEG(embed_dim)
        for i in range(1, num_layers + 1):
            layer = Layer(embed_dim, num_heads, landmarks, conv_kernel_size, dropout, mode)
            self.add_module(f"layer{i}", layer)
        self.norm = nn.LayerNorm(embed_dim)
        self._fc2 = nn.Linear(embed_dim, num_classes)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """features: [B, N, D], any dtype; mask: bool [B, N]. Returns logits [B, num_classes]."""
        mask = real_patches(features, mask, self.width)
        if self.shared_sequence is not None:
            return self._read_part(features, mask)
        return self.read(embedded(self.embed, features), mask)

    @property
    def embed(self) -> nn.Module:
        """The first layer, which makes h = relu(W x) of every patch."""
        return self._fc1

    def read(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reads bags of embedded patches, h [B, N, C]. Returns logits [B, num_classes]."""
        for layer, x, lengths in self.layers(h, mask):
            if layer is self.last:  # the head reads the class token alone
                return self._fc2(self.norm(layer.class_row(x, lengths)))
        raise AssertionError

    def layers(
        self, h: Tensor, mask: Tensor | None = None
    ) -> Iterator[tuple[Layer, Tensor, list[int]]]:
        """Yields every attention layer with its input, one after the other.

        The input is [B, T, C]: of every bag the class token, its patches, and the first of them
        again up to a square. Then come the tokens that a bag has, 1 + S².
        """
        if self.shared_sequence is not None:
            raise ValueError(
                "Layers and maps need whole bags, got a model whose bags are cut by "
                "sequence_parallel; load it anew in one process."
            )
        x, lengths = self._tokens(h, mask)
        for i in range(1, self.num_layers + 1):
            layer = getattr(self, f"layer{i}")
            yield layer, x, lengths
            if layer is not self.last:
                x = layer(x, lengths)
                x = self.pos_layer(x, lengths) if i == 1 else x

    def check_shareable(self) -> None:
        """Raises ValueError if bags cannot be cut over processes."""
        if self.mode != "fixed":
            raise ValueError(
                f"sequence_parallel needs mode='fixed', got TransMIL in mode {self.mode!r}."
            )

    def _read_part(self, features: Tensor, mask: Tensor) -> Tensor:
        """The logits of one whole bag, of whose tokens this process reads its part."""
        if len(features) != 1:
            raise ValueError(
                "A model whose bags are cut by sequence_parallel reads one bag at a time, got a "
                f"batch of {len(features)}."
            )
        shared, patches = self.shared_sequence, int(mask.sum())
        tokens = 1 + patches + missing(patches)
        start, stop = shared.bounds(tokens)
        own = torch.arange(max(0, start - 1), max(0, stop - 1)) % patches
        own = mask[0].nonzero()[:, 0][own.to(mask.device)]
        is_class = int(start == 0 < stop)
        x = torch.cat([self.cls_token[:, :is_class], embedded(self.embed, features[:, own])], 1)
        for i in range(1, self.num_layers + 1):
            x = getattr(self, f"layer{i}")(x, [x.shape[1]])
            if i == 1 < self.num_layers:
                x = self.pos_layer.of_part(x, tokens, shared)
        return self._fc2(self.norm(shared.first(x, tokens)))

    @property
    def last(self) -> nn.Module:
        """The last attention layer."""
        return getattr(self, f"layer{self.num_layers}")

    def _tokens(self, h: Tensor, mask: Tensor | None) -> tuple[Tensor, list[int]]:
        if mask is None or mask.all():
            x = torch.cat(
                [self.cls_token.expand(len(h), -1, -1), h, h[:, : missing(h.shape[1])]], 1
            )
            return x, [x.shape[1]] * len(x)
        real = [x[is_real] for x, is_real in zip(h, mask, strict=True)]
        bags = [torch.cat([self.cls_token[0], x, x[: missing(len(x))]]) for x in real]
        return pad_bags(bags)[0], [len(bag) for bag in bags]


class Layer(nn.Module):
    """x + attention(norm(x)), where every bag sees its own tokens."""

    def __init__(
        self, dim: int, heads: int, landmarks: int, kernel: int | None, dropout: float, mode: str
    ) -> None:
        super().__init__()
        self.mode = mode
        self.norm = nn.LayerNorm(dim)
        self.attn: NystromAttention | ExactAttention
        if mode == "exact":
            self.attn = ExactAttention(dim, heads, kernel, dropout)
        else:
            self.attn = NystromAttention(
                dim,
                dim // heads,
                heads,
                landmarks,
                residual=kernel is not None,
                residual_conv_kernel=kernel or 1,
                dropout=dropout,
                mode=mode,
            )

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """x: [B, T, C], of which a bag's first tokens are real. Returns [B, T, C]."""
        y = self.norm(x)
        if self.mode != "legacy":
            return x + self.attn(y, **real_tokens(x, lengths))
        alone = [self._legacy(bags) for bags in alike(y, lengths)]
        return x + (alone[0] if len(alone) == 1 else pad_bags([bag[0] for bag in alone])[0])

    def class_row(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Returns the first row of `forward`, the class token's, [B, C], for less."""
        y = self.norm(x)
        if isinstance(self.attn, ExactAttention):
            return x[:, 0] + self.attn(y, rows=1, **real_tokens(x, lengths))[:, 0]
        if self.mode != "legacy":
            return x[:, 0] + class_row(self.attn, y, **real_tokens(x, lengths))
        return x[:, 0] + torch.cat([self._legacy(bags, class_row) for bags in alike(y, lengths)])

    def _legacy(self, bags: Tensor, of: Callable[..., Tensor] | None = None) -> Tensor:
        """The attention of bags of one size, [B, T, C], or its class_row, [B, C]. The old rules mix
        the bags of a batch, so that long ones go one at a time."""
        assert isinstance(self.attn, NystromAttention)
        if bags.shape[1] <= self.attn.num_landmarks:
            short = short_bags(self.attn, bags)
            return short if of is None else short[:, 0]
        ones = bags.split(1)
        return torch.cat([self.attn(x) if of is None else of(self.attn, x) for x in ones])


class ExactAttention(nn.Module):
    """Softmax attention with the weights of `NystromAttention` of nystromer.compat.lucidrains."""

    def __init__(self, dim: int, heads: int, kernel: int | None, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.res_conv: nn.Conv2d | None = None
        if kernel is not None:
            shape, padding = (kernel, 1), (kernel // 2, 0)
            self.res_conv = nn.Conv2d(
                heads, heads, shape, padding=padding, groups=heads, bias=False
            )

    def forward(self, x: Tensor, mask: Tensor | None = None, rows: int | None = None) -> Tensor:
        """x: [B, T, C]; mask: real tokens, bool [B, T]; rows: how many are wanted, all if None.
        Returns [B, rows, C]."""
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        keys = None
        if mask is not None:
            v, keys = v.masked_fill(~mask[:, None, :, None], 0.0), mask[:, None, None]
        y = F.scaled_dot_product_attention(q[:, :, :rows], k, v, attn_mask=keys)
        if self.res_conv is not None:
            y = y + self.res_conv(v)[:, :, :rows]
        return self.to_out(y.transpose(1, 2).flatten(2))

    def attention_rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Returns rows of every head's attention map, [B, H, R, T]. x: [B, T, C]."""
        q, k = self._queries_and_keys(x)
        return (q[:, :, rows] @ k.mT).softmax(-1)

    def weighted_attention_rows(self, x: Tensor, weights: Tensor) -> Tensor:
        """Returns sums of rows, weights [B, R, T], of every head's attention map, [B, H, R, T]."""
        q, k = self._queries_and_keys(x)
        blocks = zip(weights[:, None].split(ROWS, 3), q.split(ROWS, 2), strict=True)
        return torch.stack([some @ (part @ k.mT).softmax(-1) for some, part in blocks]).sum(0)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, _ = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q * q.shape[3] ** -0.5, k
