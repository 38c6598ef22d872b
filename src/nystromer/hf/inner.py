"""Finds the transformers model that a module is or holds, as a SentenceTransformer does."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def transformers_model(module: Any) -> PreTrainedModel:
    """Returns the module itself, or the only transformers model that it holds.

    Raises:
        TypeError: If it is no module, or holds none or several.
    """
    found = models_within(module) if isinstance(module, nn.Module) else []
    if len(found) != 1:
        count = f", which holds {len(found)}" if len(found) > 1 else ""
        raise TypeError(
            "`model` must be a transformers model, or hold one as a SentenceTransformer does, got "
            f"{type(module).__name__}{count}."
        )
    return found[0]


def models_within(module: nn.Module) -> list[PreTrainedModel]:
    """Returns the transformers models in a module that are not a part of another one."""
    if isinstance(module, PreTrainedModel):
        return [module]
    inner = (model for child in module.children() for model in models_within(child))
    return list(dict.fromkeys(inner))
