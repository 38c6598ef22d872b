"""Gated attention pooling of a bag (Ilse et al. 2018, arXiv:1802.04712, eq. 7 and 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nystromer.mil.models.batch import embedded, real_patches


class ABMIL(nn.Module):
    r"""head(sum over patches of a_n h_n), with a = softmax of wᵀ (tanh(V h) ⊙ sigmoid(U h)).

    Args:
        width: D, features of a patch.
        num_classes: Logits of a bag.
        embed_dim: Features of h = relu(W x).
        attention_dim: Rows of V and U.
        dropout: On h.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        embed_dim: int = 512,
        attention_dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Sequential(nn.Linear(width, embed_dim), nn.ReLU(), nn.Dropout(dropout))
        self.values = nn.Linear(embed_dim, attention_dim)  # V
        self.gates = nn.Linear(embed_dim, attention_dim)  # U
        self.scores = nn.Linear(attention_dim, 1, bias=False)  # w
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """features: [B, N, D], any dtype; mask: bool [B, N]. Returns logits [B, num_classes]."""
        mask = real_patches(features, mask, self.width)
        return self.read(embedded(self.embed, features), mask)

    def read(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reads bags of embedded patches, h [B, N, C]. Returns logits [B, num_classes]."""
        if mask is not None:
            h = h.masked_fill(~mask[..., None], 0.0)
        return self.head((self._weights(h, mask)[:, None] @ h)[:, 0])

    def attention(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the share of every patch in its bag, [B, N]; shares of a bag sum to one."""
        mask = real_patches(features, mask, self.width)
        return self._weights(embedded(self.embed, features), mask)

    def _weights(self, h: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.scores(torch.tanh(self.values(h)) * torch.sigmoid(self.gates(h)))[..., 0]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(1)  # eq. 9
