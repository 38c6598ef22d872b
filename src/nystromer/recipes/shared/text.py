"""Passages of a fixed length from the user's text files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromer.recipes.shared.rows import read_rows, text_of

CHARACTERS = 8  # of a token, more than they have: text beyond that is not read


def read_text(path: Path) -> str:
    """The lines of a text file, or the column "text" of a .jsonl, .csv, .tsv or .parquet file.

    Raises:
        ValueError: As `read_rows`, or if the column holds anything but text.
    """
    return "\n".join(text_of(row, "text") for row in read_rows(path, ["text"]))


def standard_text() -> str:
    """English that every Python carries: the help on the language."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def passages(
    tokenizer: Any, texts: Sequence[str], count: int, *, length: int = 512, seed: int = 0
) -> Tensor:
    """At most `count` passages of `length` tokens each, int64 [count, length], in random order.

    They do not overlap; what is left at the end of a text is dropped.

    Raises:
        ValueError: If the texts hold not even one passage.
    """
    found: list[Tensor] = []
    for text in texts:
        windows = tokenizer(
            text[: CHARACTERS * length * count] or " ",
            truncation=True,
            max_length=length,
            padding="max_length",
            return_overflowing_tokens=True,
            return_tensors="pt",
        )
        found += windows["input_ids"][windows["attention_mask"].all(1)].unbind()
    if not found:
        raise ValueError(f"The text must fill at least one passage of {length} tokens, got less.")
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return torch.stack(chosen)
