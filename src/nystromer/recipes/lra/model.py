"""The published model: two layers of width 64, the mean of a document's tokens, a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nystromer.recipes.lra.attentions import EMBED_DIM, make_attention
from nystromer.recipes.lra.tasks import Task

NUM_LAYERS, FEED_FORWARD, DROPOUT = 2, 128, 0.1


class Layer(nn.Module):
    """Computes x + attention(norm(x)), then the same with an MLP."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(EMBED_DIM)
        self.attention = attention
        self.dropout = nn.Dropout(DROPOUT)
        self.mlp = nn.Sequential(
            nn.LayerNorm(EMBED_DIM),
            nn.Linear(EMBED_DIM, FEED_FORWARD),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(FEED_FORWARD, EMBED_DIM),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm(x), mask))
        return x + self.mlp(x)


class Classifier(nn.Module):
    """Classifies documents: tokens and positions, layers, mean over real tokens, MLP, logits.

    The two documents of a pair are encoded apart; their means a and b enter the MLP as
    [a, b, a b, a - b].

    Args:
        task: Vocabulary, length, classes and number of documents.
        attention: A name of `attentions.ATTENTIONS`.
        num_landmarks: M, of Nyström attention, and FLARE's latents.
    """

    def __init__(self, task: Task, attention: str, num_landmarks: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(task.vocabulary, EMBED_DIM)
        self.positions = nn.Embedding(task.max_length, EMBED_DIM)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(
            Layer(make_attention(attention, task, num_landmarks)) for _ in range(NUM_LAYERS)
        )
        self.norm = nn.LayerNorm(EMBED_DIM)
        self.head = nn.Sequential(
            nn.Linear(EMBED_DIM * (4 if task.documents == 2 else 1), FEED_FORWARD),
            nn.ReLU(),
            nn.Linear(FEED_FORWARD, task.classes),
        )

    def forward(
        self,
        input_ids: Tensor,
        mask: Tensor,
        labels: Tensor | None = None,
        other_ids: Tensor | None = None,
        other_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns logits [B, C], and the loss if there are labels.

        input_ids, other_ids: [B, N]; mask, other_mask: real tokens, bool [B, N]; labels: [B].
        """
        features = self.encode(input_ids, mask)
        if other_ids is not None and other_mask is not None:
            a, b = features, self.encode(other_ids, other_mask)
            features = torch.cat([a, b, a * b, a - b], 1)
        logits = self.head(features)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.float(), labels), "logits": logits}

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean over the real tokens, [B, N] -> [B, E]."""
        x = self.dropout(self.tokens(ids) + self.positions.weight[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        real = mask[..., None]
        return (self.norm(x) * real).sum(1) / real.sum(1)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Returns rows as the model takes them, padded to the longest."""
    batch = {"labels": torch.tensor([int(row["labels"]) for row in rows])}
    batch["input_ids"], batch["mask"] = padded([row["input_ids"] for row in rows])
    if "other_ids" in rows[0]:
        batch["other_ids"], batch["other_mask"] = padded([row["other_ids"] for row in rows])
    return batch


def padded(documents: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Returns ids [B, N] and which of them are real."""
    lengths = torch.tensor([len(x) for x in documents])
    longest = int(lengths.max())
    ids = torch.zeros(len(documents), longest, dtype=torch.int64)
    for row, document in zip(ids, documents, strict=True):
        row[: len(document)] = torch.from_numpy(np.asarray(document, np.int64))
    return ids, torch.arange(longest) < lengths[:, None]
