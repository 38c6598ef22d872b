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
CHARACTERS = 8  # of a token at most, about: more text than that is not read


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
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"The text file {path} cannot be read: {reason}.") from error
    except (ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        wanted = 'lines of JSON with "text"' if ".jsonl" in path.suffixes else "UTF-8 text"
        raise ValueError(f"The text file {path} must hold {wanted}, got {error!r}.") from error


def passages(
    tokenizer: Any, files: Sequence[Path], count: int, *, length: int = 512, seed: int = 0
) -> Tensor:
    """At most `count` passages of `length` tokens each, int64 [count, length], in random order.

    Every file gives as many as it can; the windows do not overlap, and its tail is left out.

    Raises:
        ValueError: If the files hold not even one passage, or as `read_text`.
    """
    found: list[Tensor] = []
    for path in files:
        text = read_text(path)[: CHARACTERS * length * count]
        if text.strip():
            options = {"truncation": True, "max_length": length, "return_tensors": "pt"}
            windows = tokenizer(
                text, **options, padding="max_length", return_overflowing_tokens=True
            )
            full = windows["attention_mask"].all(1)
            found += windows["input_ids"][full].unbind()
    if not found:
        raise ValueError(
            f"The text must hold at least one passage of {length} tokens, got less in "
            f"{', '.join(map(str, files))}."
        )
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return torch.stack(chosen)
