"""Measures how close a model with some layers swapped is to itself under exact attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from nystromer.hf.conversion.attend import attend, repeated
from nystromer.hf.conversion.interface import exact_attention_forward
from nystromer.hf.conversion.layers import base_name, evaluating, intercepted
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.hf.masks import key_mask

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fidelity:
    """Says how close a model's last hidden states are to those under exact attention.

    Args:
        cosine, worst_cosine: Of the mean over a sequence's real tokens (an embedding): mean and
            least over the sequences.
        error: ‖h - h*‖ / ‖h*‖ over all real tokens.
    """

    cosine: float
    worst_cosine: float
    error: float


def exact_states(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Tensor]:
    """Returns the last hidden states for each batch under exact attention."""
    with running(model, exact_attention_forward):
        return [last_hidden(model, batch) for batch in batches]


def fidelity(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    choices: Sequence[LayerChoice],
    exact: Sequence[Tensor],
) -> Fidelity:
    """Compares the model with these layers swapped, the others exact, with `exact`, its last hidden
    states for each batch under exact attention. The model is not changed."""
    names = {module: base_name(model, name) for name, module in model.named_modules()}
    by_name = {choice.name: choice for choice in choices if choice.attention != "exact"}

    def planned(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> tuple[Tensor, Tensor | None]:
        choice = by_name.get(names[module])
        if choice is None:
            return exact_attention_forward(module, query, key, value, *args, **kw)
        key, value = repeated(query, key), repeated(query, value)
        mask, scaling = key_mask(args[0], len(query)), kw.get("scaling")
        taps = None if choice.conv_taps is None else query.new_tensor(choice.conv_taps)
        output = attend(choice, query, key, value, mask, scaling, taps)
        return output.transpose(1, 2).contiguous(), None

    with running(model, planned):
        return measure([last_hidden(model, batch) for batch in batches], exact)


def measure(hidden: Sequence[Tensor], exact: Sequence[Tensor]) -> Fidelity:
    """Compares last hidden states [B, N, E], zero at padding, with those under exact attention."""
    pairs = list(zip(hidden, exact, strict=True))
    off = sum(float((h - w).square().sum()) for h, w in pairs)
    total = sum(float(w.square().sum()) for _, w in pairs)
    sums = [(h.double().sum(1), w.double().sum(1)) for h, w in pairs]  # float32 rounds 1 - cosine
    cosines = torch.cat([F.cosine_similarity(h, w) for h, w in sums])
    return Fidelity(float(cosines.mean()), float(cosines.min()), (off / total) ** 0.5)


@torch.no_grad()
def last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Returns the base model's last hidden states, float32 [B, N, E], zero at padding."""
    inputs = {key: x for key, x in batch.items() if key != "labels"}
    hidden = model.base_model(**inputs)[0].float()
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden
    return hidden * mask[..., None]


@contextmanager
def running(model: PreTrainedModel, function: Callable) -> Iterator[None]:
    """Keeps the model in evaluation mode with `function` for its attention."""
    with evaluating(model), intercepted(model, function):
        yield
