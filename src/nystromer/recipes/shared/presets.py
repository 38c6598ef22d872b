"""Sizes of models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from nystromer.checks import check_positive
from nystromer.hf import NystromformerConfig


def tiny(**fields: Any) -> NystromformerConfig:
    """Two layers of 64, two heads: 2,048 bytes on two CPU cores."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
    return NystromformerConfig(
        **{**sizes, "intermediate_size": 128, "conv_kernel_size": 33, **fields}
    )


PRESETS: dict[str, Callable[..., NystromformerConfig]] = {
    "tiny": tiny,
    "bert-small": NystromformerConfig.bert_small,
    "bert-base": NystromformerConfig.bert_base,
}
ATTENTIONS = ("nystrom", "exact")


def preset(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    num_landmarks: int = 64,
    attention: str = "nystrom",
    **fields: Any,
) -> NystromformerConfig:
    """The config of a new model.

    Args:
        name: tiny, bert-small or bert-base.
        tokenizer: Its vocabulary and padding are the model's.
        max_length: Positions.
        num_landmarks: M.
        attention: nystrom, or exact for the twin with softmax attention and the same parameters.
        fields: More of the config, which take precedence.

    Raises:
        ValueError: If there is no such preset or attention, or a number is below 1.
    """
    check_preset(name)
    check_attention(attention)
    check_positive("max_length", max_length)
    check_positive("num_landmarks", num_landmarks)
    options = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_length,
        "num_landmarks": num_landmarks,
        "exact_attention": attention == "exact",
        "inv_coeff_init_option": True,  # each head's own norms: `pinv_init="matrix"`
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    return PRESETS[name](**{**options, **fields})


def check_preset(name: str) -> str:
    return check_one_of("preset", name, PRESETS)


def check_attention(name: str) -> str:
    return check_one_of("attention", name, ATTENTIONS)


def check_one_of(option: str, value: str, known: Iterable[str]) -> str:
    """
    Raises:
        ValueError: If it is none of them.
    """
    if value not in known:
        raise ValueError(f"`{option}` must be one of {', '.join(known)}, got {value!r}.")
    return value
