"""Passages of a fixed length from the user's text files."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OPENERS: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open}
CHARACTERS = 8  # of a token, more than they have: text beyond that is not read


def read_text(path: Path) -> str:
    """A text file, or a .jsonl file's "text" fields; also compressed as .xz or .gz.

    Raises:
        ValueError: If it cannot be read, is not UTF-8, or a line of a .jsonl file has no "text".
    """
    path = Path(path)
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            if ".jsonl" not in path.suffixes:
                return file.read()
            return "\n".join(json.loads(line)["text"] for line in file)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"The text file {path} cannot be read: {error.strerror}.") from error
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        wanted = 'lines of JSON with "text"' if ".jsonl" in path.suffixes else "UTF-8 text"
        raise ValueError(f"The text file {path} must hold {wanted}, got {error!r}.") from error


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
