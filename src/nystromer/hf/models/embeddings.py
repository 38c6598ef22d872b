"""Embeds tokens, and n-grams of tokens if the config has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.nystromformer import modeling_nystromformer as theirs

from nystromer.gradients import zero_gradients
from nystromer.hf.models.configuration import NystromformerConfig

if TYPE_CHECKING:
    from nystromer.distributed import SharedSequence


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

    def part_of(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        shared: SharedSequence,
    ) -> list[Tensor | None]:
        """Returns the same inputs of this process's part of a sequence, [B, N] each but the mask.

        Tokens come as their embeddings where n-grams reach into the part before.
        """
        given = inputs_embeds if input_ids is None else input_ids
        assert given is not None
        n = given.shape[1]
        start, stop = shared.bounds(n)
        if position_ids is None:
            position_ids = self.position_ids[:, :n]
        if input_ids is not None and self.ngram_embeddings is not None:
            earlier = max(0, start - self.ngram_embeddings.config.ngram_size + 1)
            ngrams = self.ngram_embeddings(input_ids[:, earlier:stop])[:, start - earlier :]
            inputs_embeds = self.word_embeddings(input_ids[:, start:stop]) + ngrams
            input_ids = None
        elif inputs_embeds is not None:
            inputs_embeds = shared.part(inputs_embeds)
        if attention_mask is not None:
            attention_mask = attention_mask[..., start:stop]
        tokens = (input_ids, token_type_ids, position_ids)
        ids, types, positions = (None if x is None else shared.part(x) for x in tokens)
        return [ids, attention_mask, types, positions, inputs_embeds]
