"""The module whose graph is exported: an encoder, and what makes one vector of its states."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from nystromer.recipes.inputs.sentences import SentenceHead

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Embedder(nn.Module):
    """Computes logits, sentence embeddings [B, E], or the last states [B, N, E], zero at padding.

    Args:
        model: A text encoder; it is exported in float32, and in eval mode.
        head: How one vector is made of the states; None leaves them, or the model's own logits.
        inputs: The names of the inputs, from `INPUTS`; None means those that the model knows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: SentenceHead | None = None,
        inputs: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model.eval().float()
        self.head = head
        known = inspect.signature(model.forward).parameters
        self.inputs = tuple(x for x in inputs or INPUTS if x in known and x in INPUTS)
        self.output = "last_hidden_state" if head is None else "sentence_embedding"
        if "ForSequenceClassification" in type(model).__name__:
            self.head, self.output = None, "logits"

    def forward(self, *tensors: Tensor) -> Tensor:
        """Computes the output from the inputs, int64 [B, N] each, in the order of `inputs`."""
        given = dict(zip(self.inputs, tensors, strict=True))
        outputs = self.model(**given)
        if self.output == "logits":
            return outputs.logits
        states = outputs.last_hidden_state
        mask = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
        if self.head is None:
            return states.masked_fill(~mask[..., None], 0.0)
        vector = torch.cat([pooled(states, mask, x) for x in self.head.poolings], -1)
        return F.normalize(vector, dim=-1) if self.head.normalized else vector


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Makes one vector of the states [B, N, E] of the real tokens, bool [B, N]: [B, E]."""
    if pooling == "max":
        return states.masked_fill(~mask[..., None], -torch.inf).amax(1)
    number, count = mask.cumsum(1), mask.sum(1, keepdim=True)
    if pooling == "cls":
        weights = (mask & (number == 1)).to(states.dtype)
    elif pooling == "lasttoken":
        weights = (mask & (number == count)).to(states.dtype)
    else:
        divisor = count.clamp(min=1).to(states.dtype)
        weights = mask / (divisor.sqrt() if pooling == "mean_sqrt_len_tokens" else divisor)
    return (weights[:, None] @ states)[:, 0]
