"""Passages of a fixed length from the user's text files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromer.recipes.inputs import rows

CHARACTERS = 8  # of a token, more than they have: text beyond that is not read


def read_text(path: Path) -> str:
    """Returns the lines of a text file, or the column "text" of a .jsonl, .csv, .tsv or .parquet
    file.

    Raises:
        ValueError: As `read_rows`, or if the column holds anything but text.
    """
    return "\n".join(row["text"] for row in rows.read_rows(path, {"text": rows.text}))


def standard_text() -> str:
    """Returns English that every Python carries: the help on the language."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def passages(
    tokenizer: Any, texts: Sequence[str], count: int, *, length: int = 512, seed: int = 0
) -> Tensor:
    """Returns at most `count` passages of `length` tokens each, int64 [count, length], in random
    order.

    They do not overlap; what is left at the end of a text is dropped.

    Raises:
        ValueError: If the texts hold not even one passage.
    """
    found: list[Tensor] = []
    for text in texts:
        found += whole_windows(tokenizer, text[: CHARACTERS * length * count] or " ", length)
    if not found:
        raise ValueError(f"The text must fill at least one passage of {length} tokens, got less.")
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return torch.stack(chosen)


def whole_windows(tokenizer: Any, text: str, length: int) -> list[Tensor]:
    """Returns the pieces of a text that fill `length` tokens, special ones included."""
    if tokenizer.is_fast:
        windows = tokenizer(
            text,
            truncation=True,
            max_length=length,
            padding="max_length",
            return_overflowing_tokens=True,
            return_tensors="pt",
        )
        return list(windows["input_ids"][windows["attention_mask"].all(1)].unbind())
    space = length - tokenizer.num_special_tokens_to_add()
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = (ids[i : i + space] for i in range(0, len(ids) - space + 1, space))
    return [torch.tensor(tokenizer.build_inputs_with_special_tokens(x)) for x in pieces]
