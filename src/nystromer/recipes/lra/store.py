"""Data sets of one form on disk: made once, kept by the fingerprint of what they are made from.

A row holds `input_ids` (and `other_ids`, the second document of a pair), one byte a token, and
`labels`. Files are those of the library datasets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
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

FORMAT = 1  # counts up when the same source makes other rows
ABOUT = "about.json"
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Split:
    """Documents as uint8 arrays, their labels, and in a pair task the other documents."""

    documents: Sequence[np.ndarray]
    labels: Sequence[int]
    others: Sequence[np.ndarray] | None = None


@dataclass(frozen=True)
class Prepared:
    """Splits by name, and sentences on what was done to them, say how many rows were cut."""

    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)


def stored(
    name: str, cache: Path, made_from: dict[str, Any], make: Callable[[], Prepared]
) -> tuple[DatasetDict, dict[str, Any]]:
    """The data set and what is known of it, from the cache or made now.

    A folder appears there whole or not at all.

    Args:
        made_from: All that decides about the rows; its hash is in the folder's name.
    """
    about: dict[str, Any] = {"format": FORMAT, **made_from}
    fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"{name}-{fingerprint}"
    if not folder.exists():
        prepared = make()
        about["notes"] = prepared.notes
        about["rows"] = {split: len(rows.labels) for split, rows in prepared.splits.items()}
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
        try:
            tables = {split: Dataset(table(rows)) for split, rows in prepared.splits.items()}
            DatasetDict(tables).save_to_disk(unfinished)
            (unfinished / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
            try:
                os.replace(unfinished, folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return load_from_disk(folder), {**about, "fingerprint": fingerprint}


def table(split: Split) -> pa.Table:
    columns = {"input_ids": lists(split.documents), "labels": pa.array(split.labels, pa.int64())}
    if split.others is not None:
        columns["other_ids"] = lists(split.others)
    return pa.table(columns)


def lists(rows: Sequence[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.uint8), *rows]))


def from_hub(name: str, split: str) -> Dataset:
    """
    Raises:
        ValueError: If the Hub cannot be reached.
    """
    try:
        return load_dataset(name, split=split)
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        raise ValueError(
            f"{name} does not come from the Hub ({reason}); pass --data-dir."
        ) from error


def fingerprints(paths: Iterable[Path]) -> list[str]:
    """Name, size and time of change of every file."""
    found = [(path.name, path.stat()) for path in paths]
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found]


def need_files(folder: Path, names: Iterable[str], otherwise: str) -> list[Path]:
    """
    Raises:
        ValueError: If one of the files is not in the folder; it ends in `otherwise`.
    """
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"`--data-dir` must hold {path.name}, got {folder}; {otherwise}.")
    return paths


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines without their ends.

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
    """Documents of at most `limit` bytes, and a sentence if some had to be cut."""
    found = [np.frombuffer(text, np.uint8) for text in documents]
    cut = sum(len(text) > limit for text in found)
    note = f"{cut:,} of {len(found):,} {what} are longer than {limit:,} and were cut there."
    return [text[:limit] for text in found], [note] if cut else []


def hold_out(labels: Sequence[int], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the rest and of the share held out of every class, by the seed."""
    from sklearn.model_selection import train_test_split

    rest, held = train_test_split(
        np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels
    )
    return np.sort(rest), np.sort(held)


def in_parallel(
    function: Callable[[T], U], items: Sequence[T], name: str, processes: int | None
) -> Iterator[U]:
    """function(item) of each in order, with a progress bar."""
    processes = min(processes or len(os.sched_getaffinity(0)), len(items))
    bar = {"total": len(items), "desc": name, "leave": False}
    if processes == 1:
        yield from tqdm(map(function, items), **bar)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from tqdm(pool.map(function, items), **bar)
