"""Where documents come from: files, read one at a time, or a dataset of the Hub, streamed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DownloadConfig, IterableDataset, load_dataset

from nystromer.recipes.shared.rows import BadLines, read_rows, reader, text_rows

LETTERS = 50_000  # of a document in a text file without empty lines


@dataclass(frozen=True)
class Corpus:
    """
    Args:
        files: A row of .jsonl, .csv, .tsv or .parquet is a document; in other files, which are
            text, an empty line ends one, and so does the line after 50,000 letters.
        dataset: Instead of files, the name of a dataset on the Hub, or its folder.
        config, split: Of the dataset.
        text_column: That holds the text.
        skip_bad_lines: Go on after lines of the files that cannot be read.

    Raises:
        ValueError: If there are neither files nor a dataset, or both.
    """

    files: tuple[Path, ...] = ()
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.dataset):
            found = "both" if self.files else "neither"
            raise ValueError(f"Name files to learn from, or a --dataset, got {found}.")

    def identity(self) -> list[Any]:
        """What the documents depend on, as JSON holds it.

        Raises:
            ValueError: If a file cannot be read.
        """
        if self.dataset:
            return [self.dataset, self.config, self.split, self.text_column]
        try:
            stats = [(str(path.resolve()), path.stat()) for path in self.files]
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}.") from error
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return [files, self.text_column, self.skip_bad_lines]

    def documents(self, bad_lines: BadLines | None = None) -> Iterator[str]:
        """
        Raises:
            ValueError: As `read_rows`.
        """
        bad_lines = bad_lines or BadLines(self.skip_bad_lines)
        if self.dataset:
            yield from (row[self.text_column] for row in self.stream())
            return
        for path in self.files:
            rows = read_rows(path, [self.text_column], bad_lines)
            texts = (row[self.text_column] for row in rows)
            yield from joined(texts) if reader(path) is text_rows else map(str, texts)

    def stream(self) -> IterableDataset:
        """The dataset's texts, read when asked for.

        Raises:
            ValueError: If it cannot be opened, or lacks the column.
        """
        try:
            found = load_dataset(
                self.dataset,
                self.config,
                split=self.split,
                streaming=True,
                download_config=DownloadConfig(max_retries=3),
            )
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0].rstrip(". ")
            raise ValueError(f"The dataset {self.dataset} cannot be opened: {first}.") from error
        columns = found.column_names or list(next(iter(found)))
        if self.text_column not in columns:
            raise ValueError(
                f"The dataset {self.dataset} has no column {self.text_column!r}; it has "
                f"{', '.join(map(repr, columns))}."
            )
        return found.select_columns([self.text_column])


def joined(lines: Iterator[str]) -> Iterator[str]:
    """Lines of text into documents."""
    document, letters = [], 0
    for line in lines:
        document.append(line)
        letters += len(line)
        if not line.strip() or letters > LETTERS:
            yield "\n".join(document)
            document, letters = [], 0
    yield "\n".join(document)


def held_out(text: str, share: float) -> bool:
    """Whether the document is kept for evaluation: by what it says, so that a copy of it, wherever
    and by whichever process it is read, lands on the same side."""
    return zlib.crc32(text.encode()) < share * 2**32
