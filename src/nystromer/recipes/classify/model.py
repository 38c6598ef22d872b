"""The model and tokenizer of a classifier: a new one, or one to fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from nystromer.hf import NystromformerForSequenceClassification, nystromize
from nystromer.hf.positions import num_positions
from nystromer.recipes.classify.settings import Settings
from nystromer.recipes.classify.tasks import Columns
from nystromer.recipes.inputs.models import check_vocabulary, load_config, load_model
from nystromer.recipes.inputs.presets import check_attention, preset
from nystromer.recipes.inputs.tokenizers import load_tokenizer

TINY = {"classifier_pooling": "mean", "initializer_range": 0.1}  # docs/log.md
TINY_BYTES = {**TINY, "ngram_size": 5}
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def new_classifier(settings: Settings, labels: Sequence[str], columns: Columns) -> Loaded:
    """Makes a model of a preset.

    Raises:
        ValueError: As `load_tokenizer` and `preset`.
    """
    tokenizer = load_tokenizer(str(settings.tokenizer))
    fields: dict[str, Any] = {}
    if settings.preset == "tiny":
        fields = TINY_BYTES if settings.tokenizer == "bytes" else TINY
    config = preset(
        str(settings.preset),
        tokenizer,
        max_length=settings.max_length or 1,
        num_landmarks=settings.num_landmarks or 64,
        attention=settings.attention or "nystrom",
        **fields,
        **kept(labels, columns),
    )
    set_seed(settings.seed)
    tokenizer.model_max_length = settings.max_length or 1
    return NystromformerForSequenceClassification(config), tokenizer


def load_classifier(settings: Settings, labels: Sequence[str], columns: Columns) -> Loaded:
    """Loads a checkpoint and puts a new head on it: a Nyströmformer, or an encoder that
    `nystromize` accepts.

    Raises:
        ValueError: If there is none, it has fewer positions than `max_length` or a smaller
            vocabulary than the tokenizer, or as `nystromize`.
    """
    name = str(settings.model)
    tokenizer = load_tokenizer(settings.tokenizer or name)
    set_seed(settings.seed)
    config = load_config(name, **kept(labels, columns))
    choose_attention(config, settings)
    options = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    model = load_model(AutoModelForSequenceClassification, name, new_head=True, **options)
    if is_swappable(config) and settings.attention != "exact":
        nystromize(model, settings.num_landmarks or 64)
    tokenizer.model_max_length = usable_length(settings, model, tokenizer)
    check_vocabulary(model, tokenizer, name)
    return model, tokenizer


def kept(labels: Sequence[str], columns: Columns) -> dict[str, Any]:
    """Returns what `nystromer predict` will find in the config."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",  # else the first loss writes it
        "text_columns": [name for name in (columns.text, columns.pair) if name is not None],
    }


def is_swappable(config: Any) -> bool:
    """Says whether it is an encoder with exact attention."""
    return config.model_type != "nystromformer" and getattr(config, "nystrom", None) is None


def choose_attention(config: Any, settings: Settings) -> None:
    """Sets the attention of a Nyströmformer as the settings say.

    Raises:
        ValueError: If exact attention is asked of an encoder that was converted.
    """
    if settings.attention is not None:
        check_attention(settings.attention)
    if config.model_type == "nystromformer":
        config.num_landmarks = settings.num_landmarks or config.num_landmarks
        if settings.attention is not None:
            config.exact_attention = settings.attention == "exact"
    elif not is_swappable(config) and (settings.attention == "exact" or settings.num_landmarks):
        raise ValueError(
            f"{settings.model} was converted to Nyström attention by a plan of its own, which "
            "--attention exact and --num-landmarks cannot change; leave them out."
        )


def usable_length(
    settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Returns the tokens at which a text is cut.

    Raises:
        ValueError: If the model cannot read `max_length` tokens.
    """
    positions = num_positions(model)
    if settings.max_length is None:
        return min(positions or 512, tokenizer.model_max_length)
    if positions is not None and settings.max_length > positions:
        raise ValueError(
            f"`--max-length` must be at most the {positions} positions of {settings.model}, got "
            f"{settings.max_length}; nystromer.hf.resize_positions gives it more."
        )
    return settings.max_length
