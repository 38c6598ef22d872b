"""Turns rows into what a classifier reads: token ids and the number of a label."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from nystromer.recipes.classify.tasks import Columns
from nystromer.recipes.inputs.formats import Row
from nystromer.recipes.inputs.rows import as_number, label
from nystromer.recipes.inputs.tokenizers import check_alphabet
from nystromer.recipes.runs.order import EpochDataset

Example = dict[str, Any]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    columns: Columns,
    max_length: int,
    labels: Mapping[str, int] | None = None,
) -> list[Example]:
    """Returns the token ids of every row, cut to `max_length`, and its label's number if `labels`
    are given.

    Raises:
        ValueError: If the tokenizer is for another alphabet.
    """
    texts = [[row[name] for row in rows] for name in (columns.text, columns.pair) if name]
    check_alphabet(tokenizer, texts[0])
    examples: list[Example] = []
    for start in tqdm(range(0, len(rows), 500), "tokens", disable=len(rows) < 5000):
        part = [column[start : start + 500] for column in texts]
        encoded = tokenizer(*part, truncation=True, max_length=max_length)
        for values in zip(*encoded.values(), strict=True):
            arrays = (np.asarray(x, dtype=np.int32) for x in values)  # a quarter of a list's memory
            examples.append(dict(zip(encoded.keys(), arrays, strict=True)))
    if labels is not None:
        for example, row in zip(examples, rows, strict=True):
            example["labels"] = labels[label_of(row, columns.label)]
    return examples


class LaterStarts(EpochDataset):
    """Holds examples whose texts begin anew in every epoch, at a random token of their first part.

    What is drawn depends on the seed, the epoch and the index alone.

    Args:
        examples: Of single texts, [CLS] first and [SEP] last, longer than `max_length` if they are.
        part: Share of a text in which it may begin, in [0, 1).
        max_length: Tokens at which a text is cut.
        seed: Of the draw.
    """

    def __init__(
        self, examples: Sequence[Example], part: float, max_length: int, seed: int
    ) -> None:
        self.examples, self.part, self.max_length, self.seed = examples, part, max_length, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        draw = random.Random(f"{self.seed}, {self.epoch}, {index}")
        start = draw.randint(1, 1 + int(self.part * (length(example) - 2)))
        end = min(start + self.max_length - 2, length(example) - 1)
        return {
            name: value if name == "labels" else np.r_[value[0], value[start:end], value[-1]]
            for name, value in example.items()
        }


def by_length(examples: Sequence[Example]) -> list[int]:
    """Returns the order in which batches need the least padding, the longest first."""
    return sorted(range(len(examples)), key=lambda i: -length(examples[i]))


def length(example: Example) -> int:
    """Returns the number of tokens."""
    return len(example["input_ids"])


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Returns what pads to the longest of a batch, in steps of 64 so that few shapes occur."""
    steps = 64 if tokenizer.model_max_length % 64 == 0 else None
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=steps)


def label_of(row: Row, column: str) -> str:
    """Returns the label of a row as text: 1, "1" and 1.0 are one label."""
    value = row[column]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def label_numbers(rows: Sequence[Row], column: str) -> dict[str, int]:
    """Returns {label: its number}: numbers by their size, then words by the alphabet.

    Raises:
        ValueError: If one is no label, or there are fewer than two, or more than a hundred and
            than a tenth as many as rows.
    """
    if wrong := next((x for x in (label(row[column]) for row in rows) if x), ""):
        raise ValueError(f"The column {column!r} {wrong}.")
    found = {label_of(row, column) for row in rows}
    numbers = {name: as_number(name) for name in found}
    ordered = sorted(found, key=lambda x: (numbers[x] is None, numbers[x] or 0, x))
    if len(ordered) < 2:
        raise ValueError(
            f"Training needs rows of at least two labels, got {ordered[0]!r} alone in the column "
            f"{column!r}."
        )
    if len(ordered) > max(100, len(rows) // 10):
        raise ValueError(
            f"The column {column!r} must hold labels of classes, got {len(ordered):,} different "
            f"values in {len(rows):,} rows."
        )
    return {label: i for i, label in enumerate(ordered)}


def check_labels(rows: Sequence[Row], column: str, labels: Mapping[str, int], split: str) -> None:
    """Checks that training shows all labels.

    Raises:
        ValueError: If a label does not occur there.
    """
    for row in rows:
        if label_of(row, column) not in labels:
            raise ValueError(
                f"The {split} rows hold the label {label_of(row, column)!r}, which training never "
                f"shows; it has {', '.join(map(repr, labels))}."
            )


def split_off(
    rows: Sequence[Row], column: str, *, share: float = 0.1, most: int = 2000, seed: int = 0
) -> tuple[list[Row], list[Row]]:
    """Returns the rest, and `share` of every label's rows: at most about `most`, and at least one
    of every label that stands in two rows."""
    share = min(share, most / len(rows))
    by_label: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_label.setdefault(label_of(row, column), []).append(i)
    draw = random.Random(seed)
    held: set[int] = set()
    for members in by_label.values():
        if len(members) > 1:
            held.update(draw.sample(members, max(1, round(share * len(members)))))
    return (
        [row for i, row in enumerate(rows) if i not in held],
        [row for i, row in enumerate(rows) if i in held],
    )
