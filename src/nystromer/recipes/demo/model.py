"""The twins' model: a classifier of byte sequences that reads its answer at a class token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nystromer.modules import NystromAttention
from nystromer.recipes.demo.settings import Settings


class ExactAttention(NystromAttention):
    """Has the parameters of NystromAttention and torch's own exact attention."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self._heads(proj, x) for proj in (self.q_proj, self.k_proj, self.v_proj))
        output = F.scaled_dot_product_attention(q, k, v)
        if self.conv_weight is not None:
            taps = self.conv_weight[:, None, :, None]  # [H, 1, K, 1]
            padding = (taps.shape[2] // 2, 0)
            output = output + F.conv2d(v, taps, padding=padding, groups=self.num_heads)
        return self.dropout(self.out_proj(output.transpose(1, 2).flatten(2)))

    def attention_rows(
        self, x: Tensor, rows: Tensor | Sequence[int], mask: Tensor | None = None
    ) -> Tensor:
        q, k = self._heads(self.q_proj, x), self._heads(self.k_proj, x)
        return torch.softmax(self.head_dim**-0.5 * q[:, :, rows] @ k.mT, -1)


class Layer(nn.Module):
    """Computes x + attention(norm(x)), then the same with an MLP."""

    def __init__(self, attention: type[NystromAttention], settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.norm = nn.LayerNorm(width)
        self.attention = attention(
            width,
            settings.num_heads,
            head_dim=settings.head_dim,
            num_landmarks=settings.num_landmarks,
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.Dropout(settings.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Classifier(nn.Module):
    """Names the package of bytes: embedding, convolution, layers, class token, logits.

    Args:
        attention: NystromAttention or ExactAttention; the state-dict is the same.
        num_classes: Packages to tell apart.
    """

    def __init__(
        self, attention: type[NystromAttention], num_classes: int, settings: Settings
    ) -> None:
        super().__init__()
        width = settings.width
        self.embedding = nn.Embedding(256, width)
        self.convolution = nn.Conv1d(width, width, 7, padding=3)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.layers = nn.Sequential(
            *(Layer(attention, settings) for _ in range(settings.num_layers - 1))
        )
        self.last_layer = Layer(attention, settings)
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, num_classes))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Returns logits [B, C] for bytes [B, N], and with labels [B] the loss."""
        x = self.last_layer(self.layers(self._tokens(input_ids)))
        logits = self.head(x[:, 0])
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    @torch.no_grad()
    def class_token_row(self, input_ids: Tensor) -> Tensor:
        """Returns how much the last layer's class token reads of each byte, [B, H, N]."""
        x, last = self.layers(self._tokens(input_ids)), self.last_layer
        return last.attention.attention_rows(last.norm(x), [0])[:, :, 0, 1:]

    def _tokens(self, input_ids: Tensor) -> Tensor:
        """Returns the embeddings of bytes [B, N] as [B, 1 + N, E], the class token first."""
        x = self.embedding(input_ids)
        x = x + F.gelu(self.convolution(x.mT).mT)
        return torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)
