"""Embeds tokens, and n-grams of tokens if the config has them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.nystromformer import modeling_nystromformer as theirs

from nystromer.gradients import zero_gradients
from nystromer.hf.models.configuration import NystromformerConfig


class NgramEmbedding(nn.Embedding):
    """Sums the embeddings of the n-grams that end at each token, n from 2 to `ngram_size`."""

    PRIME, FACTOR = 2**31 - 1, 1_000_003  # of the rolling hash

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__((config.ngram_size - 1) * config.ngram_buckets, config.hidden_size)
        self.config = config

    def forward(self, ids: Tensor) -> Tensor:
        """Embeds tokens [B, N] as [B, N, E]. Before the first token stands padding."""
        length, buckets = ids.shape[1], self.config.ngram_buckets
        earlier = F.pad(ids, (self.config.ngram_size - 1, 0), value=self.config.pad_token_id)
        hashes, total = ids, torch.zeros((), device=ids.device)
        for n in range(2, self.config.ngram_size + 1):
            first = earlier[:, self.config.ngram_size - n :][:, :length]
            hashes = (hashes + first * pow(self.FACTOR, n - 1, self.PRIME)) % self.PRIME
            rows = (hashes * 40_503 + (hashes >> 15)) % buckets
            total = total + super().forward(rows + (n - 2) * buckets)
        return total


class Embeddings(theirs.NystromformerEmbeddings):
    """Adds to transformers' embeddings those of n-grams of tokens, if the config has them."""

    ngram_embeddings: NgramEmbedding | None

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None and input_ids is not None and self.ngram_embeddings is not None:
            inputs_embeds = self.word_embeddings(input_ids) + self.ngram_embeddings(input_ids)
        elif inputs_embeds is not None and self.ngram_embeddings is not None:
            inputs_embeds = zero_gradients(inputs_embeds, self.ngram_embeddings.parameters())
        return super().forward(input_ids, token_type_ids, position_ids, inputs_embeds)
