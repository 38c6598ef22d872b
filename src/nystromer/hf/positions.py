"""Counts the learnt positions of a model, adds to them, and refuses longer inputs by name."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from nystromer.checks import check_positive
from nystromer.hf.inner import transformers_model

Model = TypeVar("Model", bound=nn.Module)


def resize_positions(model: Model, num_positions: int) -> Model:
    """Lets a model with learnt absolute positions read `num_positions` tokens, in place.

    The learnt vectors are copied end to end, as the authors of Nyströmformer went from 512 to
    4,096 tokens: position i takes vector i mod the old number. What a model makes of it needs a
    little training, or at least a look. Fewer positions than before cut the rest off.

    Args:
        model: With one table of learnt positions (Nyströmformer, BERT, RoBERTa, ELECTRA, ...), or a
            SentenceTransformer that holds such a model; its max_seq_length follows.
        num_positions: Tokens it shall read.

    Returns:
        The model.

    Raises:
        TypeError: If model is no transformers model, and holds none or several.
        ValueError: If num_positions is below 1, or the model has not one table of positions.
    """
    check_positive("num_positions", num_positions)
    encoder = transformers_model(model)
    found = _with_table(encoder)
    if len(found) != 1:
        raise ValueError(
            f"`model` must have one table of learnt positions, got {len(found)} in "
            f"{type(encoder).__name__}; rotary and relative positions need no resizing."
        )
    embeddings: Any = found[0]
    old: nn.Embedding = embeddings.position_embeddings
    first = _first_position(embeddings, old)
    learnt = old.weight.detach()[first:]
    copies = learnt.repeat(-(-num_positions // len(learnt)), 1)[:num_positions]
    weight = torch.cat([old.weight.detach()[:first], copies])
    table = nn.Embedding.from_pretrained(weight, padding_idx=old.padding_idx)
    embeddings.position_embeddings = table.requires_grad_(old.weight.requires_grad)
    added = num_positions - len(learnt)
    for name in ("position_ids", "token_type_ids"):
        ids = getattr(embeddings, name, None)
        if ids is not None:
            step = 1 if name == "position_ids" else 0
            longer = ids[0, 0] + step * torch.arange(ids.shape[1] + added, device=ids.device)
            embeddings.register_buffer(name, longer[None], persistent=False)
    encoder.config.max_position_embeddings += added
    if hasattr(model, "max_seq_length"):
        setattr(model, "max_seq_length", num_positions)  # noqa: B010  # a module's type lacks it
    return model


def num_positions(model: nn.Module) -> int | None:
    """Returns how many tokens the model can read, or None if it has not one table of learnt
    positions. Rows of the table that no token takes are not counted."""
    found: list[Any] = list(_with_table(model))
    if len(found) != 1:
        return None
    table = found[0].position_embeddings
    return table.num_embeddings - _first_position(found[0], table)


def refuse_longer_inputs(model: PreTrainedModel) -> None:
    """Has the model refuse more tokens than positions with a sentence, before torch's error."""
    base = model.base_model
    if len(_with_table(base)) == 1 and _check not in base._forward_pre_hooks.values():
        base.register_forward_pre_hook(_check, with_kwargs=True)


def _check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or kwargs.get("position_ids") is not None:
        return
    ids = args[0] if args else kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if ids is None else ids
    positions = num_positions(model)
    if tokens is None or positions is None or tokens.shape[1] <= positions:
        return
    count = tokens.shape[1]
    embeddings: Any = _with_table(model)[0]
    padding = embeddings.position_embeddings.padding_idx
    if ids is not None and padding is not None:  # RoBERTa counts real tokens alone
        count = int((ids != padding).sum(1).max())
    if count > positions:
        raise ValueError(
            f"The model has {positions} positions, got {count} tokens; truncate them, or call "
            f"nystromer.hf.resize_positions(model, {count})."
        )


def _with_table(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "position_embeddings", None), nn.Embedding)
    ]


def _first_position(embeddings: nn.Module, table: nn.Embedding) -> int:
    """Returns the row of the first token: RoBERTa and Nyströmformer leave the first two out.

    RoBERTa starts after the row of its padding. Others keep a list of positions, as long as there
    are any; its numbers are not read, for they may be offloaded.
    """
    if table.padding_idx is not None:
        return table.padding_idx + 1
    ids = getattr(embeddings, "position_ids", None)
    return 0 if ids is None else table.num_embeddings - ids.shape[1]
