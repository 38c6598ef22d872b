"""Loading models of others: their files must fill the model, and no code of theirs is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from nystromer.hf import Plan  # with it the Auto classes take its models
from nystromer.recipes.files.errors import reason
from nystromer.recipes.inputs.plans import check_plan


def load_config(name: str, **fields: Any) -> Any:
    """Loads the config of a model from a folder or the Hub.

    Args:
        name: The folder or the name.
        fields: More of the config, which take precedence.

    Raises:
        ValueError: If there is none, it cannot be read, or it contradicts itself.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **fields)
        made = str((config.architectures or [""])[0])
        known = getattr(getattr(transformers, made, None), "config_class", None)
        if getattr(config, "nystrom", None) is not None:
            check_plan(Plan.from_dict(config.nystrom))
    except Exception as error:  # whatever foreign files make transformers raise
        raise ValueError(f"No model can be loaded from {name}: {reason(error)}.") from error
    if known is not None and known.model_type != config.model_type:
        raise ValueError(
            f"No model can be loaded from {name}: its config.json says model_type "
            f"{config.model_type} and architectures {made}, which is another."
        )
    return config


def load_model(kind: Any, name: str, *, new_head: bool = False, **options: Any) -> PreTrainedModel:
    """Loads a model from a folder or the Hub.

    Args:
        kind: One of transformers' Auto classes, or of the classes of models.
        name: The folder or the name.
        new_head: Whether the files must fill the base model alone, its pooler left out: what
            stands on it is trained anew, or not used.
        options: More for `from_pretrained`.

    Raises:
        ValueError: If there is no model, its files do not fill it, or they hold what it has not.
    """
    options.setdefault("config", load_config(name))
    try:
        model, found = kind.from_pretrained(
            name, output_loading_info=True, trust_remote_code=False, **options
        )
    except Exception as error:  # whatever foreign files make transformers raise
        raise ValueError(f"No model can be loaded from {name}: {reason(error)}.") from error
    wrong = unfilled(model, found, new_head) or not_finite(model)
    if wrong:
        raise ValueError(
            f"No model can be loaded from {name}: {wrong}; its files do not belong together, or "
            "are damaged."
        )
    return model.eval()


def unfilled(model: PreTrainedModel, found: Mapping[str, Any], new_head: bool) -> str:
    """Says which tensor its files lack, or hold in another shape or beyond what it has, or ""."""
    parts = {name for name, _ in model.base_model.named_children()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    for name, what in (
        ("missing_keys", "is missing"),
        ("mismatched_keys", "has another shape"),
        ("unexpected_keys", "has no place in it"),
    ):
        keys = sorted(key if isinstance(key, str) else key[0] for key in found[name])
        if new_head:
            keys = [key for key in keys if key.removeprefix(prefix).split(".")[0] in parts]
        if keys:
            return f"{len(keys)} tensors do not fit, {keys[0]} {what}"
    return ""


def not_finite(model: torch.nn.Module) -> str:
    """Says which parameter holds NaN or infinity, or ""."""
    for name, x in model.named_parameters():
        part = x.to_local() if hasattr(x, "to_local") else x  # what FSDP keeps in this process
        if not torch.isfinite(part).all():
            return f"{name} holds numbers that are not finite"
    return ""


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Checks that the model knows all tokens.

    Raises:
        ValueError: If the tokenizer has more.
    """
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.num_embeddings
    if len(tokenizer) > known:
        raise ValueError(
            f"`--tokenizer` must be that of the model, got one of {len(tokenizer)} tokens where "
            f"{name} has {known}; leave it out."
        )
