"""Rows from files of anyone, and what must be in them: a text, a label."""

from __future__ import annotations

import csv
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nystromer.recipes.files.errors import reason
from nystromer.recipes.inputs.formats import Row, reader
from nystromer.recipes.inputs.lines import BadLines, is_unicode

Check = Callable[[Any], str]


def text(value: Any) -> str:
    """Says why a value is no text, or ""."""
    if not isinstance(value, str):
        return f"must hold text, got {short(value)} ({type(value).__name__})"
    if not is_unicode(value):
        return f"must hold text, got half of a character in {ascii(value)[:40]}"
    return ""


def label(value: Any) -> str:
    """Says why a value is no label of a class, or ""."""
    if not isinstance(value, (str, int, float)) or value == "":
        return f"must hold a label, got {short(value)}"
    if (number := as_number(value)) is not None and not math.isfinite(number):
        return f"must hold a label, got {short(value)}, which is no number"
    return text(value) if isinstance(value, str) else ""


def as_number(value: Any) -> float | None:
    """Returns the number that a label is or that its letters say, None if it is a word."""
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def anything(value: Any) -> str:
    """Says that any value will do."""
    return ""


def read_rows(
    path: Path,
    columns: Sequence[str] | Mapping[str, Check] = (),
    bad_lines: BadLines | None = None,
) -> Iterator[Row]:
    """Gives the rows of a .jsonl, .csv, .tsv, .parquet or text file (a line is a row's "text"),
    also as .gz, .xz, .bz2 or .zst, one at a time.

    Args:
        path: The file.
        columns: That every row must have a value in, and what says why one is not right, such as
            `text` or `label`; the others come along.
        bad_lines: What to do with lines that cannot be read; None is an error.

    Raises:
        ValueError: If the file cannot be read, has no rows, lacks a column, or holds a line that
            cannot be read.
    """
    path, bad_lines = Path(path), BadLines() if bad_lines is None else bad_lines
    try:
        yield from checked(reader(path)(path, bad_lines), path, columns, bad_lines)
    except (OSError, EOFError, csv.Error, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}.") from error


def checked(
    rows: Iterable[tuple[int, Row]],
    path: Path | str,
    columns: Sequence[str] | Mapping[str, Check] = (),
    bad_lines: BadLines | None = None,
) -> Iterator[Row]:
    """Gives the rows that are right, of a file or of another source, as `read_rows` does."""
    checks = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, anything)
    bad_lines = BadLines() if bad_lines is None else bad_lines
    count, last = 0, ""
    for line, row in rows:
        last = next((x for x in (wrong(row, *check) for check in checks.items()) if x), "")
        if last:
            bad_lines(path, line, last)
            continue
        count += 1
        yield row
    if not count:
        raise ValueError(f"{path} holds no rows that can be read{last and f': it {last}'}.")


def wrong(row: Row, name: str, check: Check) -> str:
    """Says what is wrong with a row in one of its columns, or ""."""
    if name not in row:
        return f"has no column {name!r}; it has {', '.join(map(repr, row))}"
    if row[name] is None:
        return f"has no value in the column {name!r}"
    what = check(row[name])
    return what and f"the column {name!r} {what}"


def short(value: Any) -> str:
    """Returns a value as it is written, cut where it is long."""
    try:
        written = repr(value)
    except (RecursionError, ValueError):  # brackets without end, a number of 5,000 digits
        return f"a {type(value).__name__}"
    return written if len(written) <= 40 else f"{written[:40]}..."
