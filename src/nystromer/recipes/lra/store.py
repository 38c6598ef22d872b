"""Keeps data sets on disk in one form, by the fingerprint of what they are made from.

A row holds `input_ids` (and `other_ids`, the second document of a pair), one byte a token, and
`labels`. Files are those of the library datasets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from tqdm import tqdm

from nystromer.recipes.files.caches import kept
from nystromer.recipes.files.errors import reason
from nystromer.recipes.files.fingerprints import of_file, of_pieces, of_rows

FORMAT = 2  # counts up when the same source makes other rows
ABOUT = "about.json"
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Split:
    """Holds documents as uint8 arrays, their labels, and in a pair task the other documents."""

    documents: Sequence[np.ndarray]
    labels: Sequence[int]
    others: Sequence[np.ndarray] | None = None


@dataclass(frozen=True)
class Prepared:
    """Holds splits by name, and sentences on what was done to them, say how many rows were cut."""

    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)


def stored(
    name: str, cache: Path, made_from: dict[str, Any], make: Callable[[], Prepared]
) -> tuple[DatasetDict, dict[str, Any]]:
    """Returns the data set and what is known of it, from the cache or made now.

    Args:
        name: Of the folder in the cache.
        cache: Where data sets are kept; one that is cut or incomplete is made anew.
        made_from: All that decides about the rows; its hash is in the folder's name.
        make: Makes the rows.
    """
    about: dict[str, Any] = {"format": FORMAT, **made_from}
    fingerprint = of_rows([dict(sorted(about.items()))])[:16]

    def write(folder: Path) -> None:
        prepared = make()
        tables = {split: table(rows) for split, rows in prepared.splits.items()}
        DatasetDict({split: Dataset(rows) for split, rows in tables.items()}).save_to_disk(folder)
        about["notes"] = prepared.notes
        about["rows"] = {split: len(rows.labels) for split, rows in prepared.splits.items()}
        about["content"] = of_pieces(x for rows in tables.values() for x in contents(rows))
        (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")

    folder = kept(cache / f"{name}-{fingerprint}", write)
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return load_from_disk(folder), {**about, "fingerprint": fingerprint}


def contents(rows: pa.Table) -> Iterator[bytes]:
    """Gives the bytes of all columns, for a fingerprint of what the rows say."""
    for column in rows.columns:
        for buffer in column.combine_chunks().buffers():
            yield b"" if buffer is None else buffer.to_pybytes()


def table(split: Split) -> pa.Table:
    """Returns the rows as Arrow holds them."""
    columns = {"input_ids": lists(split.documents), "labels": pa.array(split.labels, pa.int64())}
    if split.others is not None:
        columns["other_ids"] = lists(split.others)
    return pa.table(columns)


def lists(rows: Sequence[np.ndarray]) -> pa.ListArray:
    """Returns documents of any lengths as one column."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.uint8), *rows]))


def from_hub(name: str, split: str) -> Dataset:
    """Fetches a split of a data set from the Hub.

    Raises:
        ValueError: If the Hub cannot be reached.
    """
    try:
        return load_dataset(name, split=split)
    except OSError as error:
        raise ValueError(
            f"{name} does not come from the Hub ({reason(error)}); pass --data-dir."
        ) from error


def fingerprints(paths: Iterable[Path]) -> list[str]:
    """Returns name and hash of every file, and of all files in a folder."""
    files = [x for path in paths for x in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [f"{path.parent.name}/{path.name} {of_file(path)}" for path in files if path.is_file()]


def need_files(folder: Path, names: Iterable[str], otherwise: str) -> list[Path]:
    """Returns the paths of files in a folder.

    Raises:
        ValueError: If one of the files is not in the folder; it ends in `otherwise`.
    """
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"`--data-dir` must hold {path.name}, got {folder}; {otherwise}.")
    return paths


def read_lines(path: Path) -> Iterator[bytes]:
    """Gives the lines of a file without their ends.

    Raises:
        ValueError: If the file is empty or its last line has no end: it was cut short.
    """
    line = b""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line.rstrip(b"\r\n")
    if not line.endswith(b"\n"):
        raise ValueError(f"{path} must end in a whole line, but is cut short; copy it again.")


def fit(documents: Iterable[bytes], limit: int, what: str) -> tuple[list[np.ndarray], list[str]]:
    """Returns documents of at most `limit` bytes, and a sentence if some had to be cut.

    Raises:
        ValueError: If one is empty.
    """
    found = [np.frombuffer(text, np.uint8) for text in documents]
    if not all(map(len, found)):
        empty = next(i for i, text in enumerate(found, 1) if not len(text))
        raise ValueError(f"Number {empty} of the {what} is empty; leave it out.")
    cut = sum(len(text) > limit for text in found)
    note = f"{cut:,} of {len(found):,} {what} are longer than {limit:,} and were cut there."
    return [text[:limit] for text in found], [note] if cut else []


def hold_out(labels: Sequence[int], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row numbers of the rest and of the share held out of every class, by the seed.

    Raises:
        ValueError: If the rows are too few for it.
    """
    from sklearn.model_selection import train_test_split

    try:
        rest, held = train_test_split(
            np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise ValueError(
            f"The {len(labels)} training rows are too few to hold out {share:.0%} of every class "
            f"({reason(error)}); add rows."
        ) from error
    return np.sort(rest), np.sort(held)


def in_parallel(
    function: Callable[[T], U], items: Sequence[T], name: str, processes: int | None
) -> Iterator[U]:
    """Gives function(item) of each item in order, with a progress bar."""
    processes = min(processes or len(os.sched_getaffinity(0)), len(items))
    bar = {"total": len(items), "desc": name, "leave": False}
    if processes == 1:
        yield from tqdm(map(function, items), **bar)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from tqdm(pool.map(function, items), **bar)
