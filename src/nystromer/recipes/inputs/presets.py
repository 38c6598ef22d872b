"""Sizes of models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from nystromer.checks import check_positive
from nystromer.hf import NystromformerConfig
from nystromer.recipes.inputs.options import check_memory, check_one_of


def tiny(**fields: Any) -> NystromformerConfig:
    """Returns the config of two layers of width 64: 2,048 bytes at a time on two CPU cores."""
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
    """Returns the config of a new model.

    Args:
        name: tiny, bert-small or bert-base.
        tokenizer: Its vocabulary and padding are the model's.
        max_length: Tokens that it reads, each with a learnt position.
        num_landmarks: M, of Nyström attention.
        attention: nystrom, or exact for the twin with softmax attention and the same parameters.
        fields: More of the config, which take precedence.

    Raises:
        ValueError: If there is no such preset or attention, a number is below 1, or memory cannot
            hold as many positions.
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
    config = PRESETS[name](**{**options, **fields})
    check_memory(max_length * config.hidden_size, f"{max_length:,} positions")
    return config


def check_preset(name: str) -> str:
    """Checks the name of a preset, and returns it."""
    return check_one_of("preset", name, PRESETS)


def check_attention(name: str) -> str:
    """Checks the name of an attention, and returns it."""
    return check_one_of("attention", name, ATTENTIONS)
