"""Where the documents of a pretraining come from: files, or a dataset of the Hub, streamed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import DownloadConfig, IterableDataset, load_dataset

from nystromer.recipes.files.errors import reason
from nystromer.recipes.files.fingerprints import of_file, of_rows
from nystromer.recipes.inputs.formats import reader, text_rows
from nystromer.recipes.inputs.lines import BadLines
from nystromer.recipes.inputs.rows import checked, read_rows, text

LETTERS = 50_000  # of a document in a text file without empty lines


@dataclass(frozen=True)
class Corpus:
    """Holds where the documents to learn from are: files, or a dataset of the Hub.

    Args:
        files: A row of .jsonl, .csv, .tsv or .parquet is a document; in other files, which are
            text, an empty line ends one, and so does the line after 50,000 letters.
        dataset: Instead of files, the name of a dataset on the Hub, or its folder.
        config, split: The dataset's configuration and split.
        text_column: The column that holds the text.
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
        if self.files and (self.config, self.split) != (None, "train"):
            raise ValueError(
                "`--config` and `--split` are of a --dataset, got files; leave them out."
            )

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Returns what the documents depend on: {a file, or the dataset: its fingerprint}.

        Raises:
            ValueError: If a file cannot be read.
        """
        if self.dataset:
            return {f"the dataset {self.dataset}": of_rows([self.dataset, self.config, self.split])}
        return {f"the file {path}": of_file(path) for path in self.files}

    def identity(self) -> list[Any]:
        """Returns what the documents depend on, whatever the files are called."""
        return [list(self.fingerprints.values()), self.text_column, self.skip_bad_lines]

    def documents(self, bad_lines: BadLines | None = None) -> Iterator[str]:
        """Gives the documents one at a time.

        Raises:
            ValueError: As `read_rows`.
        """
        bad_lines = bad_lines or BadLines(self.skip_bad_lines)
        columns = {self.text_column: text}
        if self.dataset:
            rows = checked(enumerate(self.stream(), 1), self.dataset, columns, bad_lines)
            yield from (row[self.text_column] for row in rows)
            return
        for path in self.files:
            texts = (row[self.text_column] for row in read_rows(path, columns, bad_lines))
            yield from joined(texts) if reader(path) is text_rows else texts

    def stream(self) -> IterableDataset:
        """Returns the dataset's texts, which are read when asked for.

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
            raise ValueError(
                f"The dataset {self.dataset} cannot be opened: {reason(error)}."
            ) from error
        columns = found.column_names or list(next(iter(found)))
        if self.text_column not in columns:
            raise ValueError(
                f"The dataset {self.dataset} has no column {self.text_column!r}; it has "
                f"{', '.join(map(repr, columns))}."
            )
        return found.select_columns([self.text_column])


def joined(lines: Iterator[str]) -> Iterator[str]:
    """Joins lines of text into documents."""
    document, letters = [], 0
    for line in lines:
        document.append(line)
        letters += len(line)
        if not line.strip() or letters > LETTERS:
            yield "\n".join(document)
            document, letters = [], 0
    yield "\n".join(document)


def held_out(text: str, share: float) -> bool:
    """Says whether the document is kept for evaluation: by what it says, so that a copy of it,
    wherever and by whichever process it is read, lands on the same side."""
    return zlib.crc32(text.encode()) < share * 2**32
