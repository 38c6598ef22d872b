"""Rows from files of anyone: JSON lines, CSV, TSV, Parquet or plain text, also compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
Reader = Callable[[Path, "BadLines"], Iterator[tuple[int, Row]]]


@dataclass
class BadLines:
    """What happens to a line that cannot be read: an error, or, with `skip`, it is counted."""

    skip: bool = False
    count: int = 0

    def __call__(self, path: Path, line: int, what: str) -> None:
        if not self.skip:
            raise ValueError(
                f"{path}, line {line}: {what}; correct it, or go on without such lines by "
                "--skip-bad-lines."
            )
        self.count += 1


def read_rows(
    path: Path, columns: Sequence[str] = (), bad_lines: BadLines | None = None
) -> Iterator[Row]:
    """The rows of a .jsonl, .csv, .tsv, .parquet or text file (a line is a row's "text"), also as
    .gz, .xz, .bz2 or .zst, one at a time.

    Args:
        path: The file.
        columns: That every row must have a value in; the others come along.
        bad_lines: What to do with lines that cannot be read; None is an error.

    Raises:
        ValueError: If the file cannot be read, has no rows, lacks a column, or holds a line that
            cannot be read.
    """
    path, bad_lines = Path(path), BadLines() if bad_lines is None else bad_lines
    count = 0
    try:
        for line, row in reader(path)(path, bad_lines):
            missing = [name for name in columns if row.get(name) is None]
            if not count and any(name not in row for name in missing):
                raise ValueError(
                    f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, row))}."
                )
            if missing:
                bad_lines(path, line, f"no value in the column {missing[0]!r}")
                continue
            count += 1
            yield row
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(". ")
        raise ValueError(f"{path} cannot be read: {reason}.") from error
    if not count:
        raise ValueError(f"{path} holds no rows that can be read.")


def text_of(row: Row, column: str) -> str:
    """
    Raises:
        ValueError: If it holds something else.
    """
    text = row.get(column)
    if not isinstance(text, str):
        raise ValueError(
            f"The column {column!r} must hold text, got {text!r} ({type(text).__name__})."
        )
    return text


def reader(path: Path) -> Reader:
    """By the name of the file, without the compression."""
    name = path.with_suffix("") if path.suffix in OPENERS else path
    return READERS.get(name.suffix, text_rows)


def json_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    for number, line in lines(path, bad_lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            bad_lines(path, number, f"not JSON ({error})")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad_lines(path, number, f"not a JSON object but a {type(row).__name__}")


def csv_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    return separated_rows(path, csv.reader, bad_lines)


def tsv_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    """Without quotes, as GLUE's: a quotation mark is a letter."""
    return separated_rows(
        path, lambda file: csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), bad_lines
    )


def separated_rows(
    path: Path, make_table: Callable[[Iterable[str]], Any], bad_lines: BadLines
) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than 131,072 letters
    table = make_table(line for _, line in lines(path, bad_lines))
    names: list[str] = next(table, [])
    for fields in table:
        if len(fields) == len(names):
            yield table.line_num, dict(zip(names, fields, strict=True))
        elif fields:
            what = f"{len(fields)} fields where the first line has {len(names)}"
            bad_lines(path, table.line_num, what)


def parquet_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    arrow = pyarrow()
    number = 0
    with opened(path) as file:
        try:
            for batch in arrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except arrow.ArrowException as error:
            raise OSError(str(error)) from error


def text_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    for number, line in lines(path, bad_lines):
        yield number, {"text": line.rstrip("\r\n")}


def lines(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, str]]:
    """Numbered from 1; those that are not UTF-8, or hold a zero byte as no text does, are bad."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                bad_lines(path, number, f"not UTF-8 text ({error.reason})")
                continue
            if "\0" in text:
                bad_lines(path, number, "not text but binary (a zero byte)")
            else:
                yield number, text


def opened(path: Path) -> IO[bytes]:
    return OPENERS.get(path.suffix, open)(path, "rb")


def open_zstandard(path: Path, mode: str) -> IO[bytes]:
    return io.BufferedReader(pyarrow().input_stream(str(path), compression="zstd"))


def pyarrow() -> Any:
    """
    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = "Parquet and .zst files need pyarrow: pip install nystromer[train]."
        raise ImportError(message) from error
    return pyarrow


OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": open_zstandard,
}
READERS: dict[str, Reader] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".ndjson": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}
