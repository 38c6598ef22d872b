"""Models without attention, which every other one has to beat: the mean and the maximum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nystromer.mil.models.batch import embedded, real_patches


class PoolingMIL(nn.Module):
    """head(pool of relu(W x)): every patch is embedded, then the bag is their mean or maximum.

    Args:
        width: D, features of a patch.
        num_classes: Logits of a bag.
        pool: "mean" or "max", a feature at a time.
        embed_dim: Features of an embedded patch.
        dropout: On the embedded patches.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        pool: str = "mean",
        embed_dim: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pool not in ("mean", "max"):
            raise ValueError(f"`pool` must be 'mean' or 'max', got {pool!r}.")
        self.width, self.pool = width, pool
        self.embed = nn.Sequential(nn.Linear(width, embed_dim), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """features: [B, N, D], any dtype; mask: bool [B, N]. Returns logits [B, num_classes]."""
        mask = real_patches(features, mask, self.width)
        return self.read(embedded(self.embed, features), mask)

    def read(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reads bags of embedded patches, h [B, N, C]. Returns logits [B, num_classes]."""
        if mask is None:
            mask = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        padding = ~mask[..., None]
        if self.pool == "max":
            return self.head(h.masked_fill(padding, -torch.inf).amax(1))
        return self.head(h.masked_fill(padding, 0.0).sum(1) / mask.sum(1, keepdim=True))
