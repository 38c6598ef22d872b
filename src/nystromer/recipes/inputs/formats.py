"""The formats of files: JSON lines, tables with commas and others, Parquet, plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from nystromer.recipes.files.errors import reason
from nystromer.recipes.inputs.lines import OPENERS, BadLines, is_unicode, lines, opened, pyarrow

Row = dict[str, Any]
Reader = Callable[[Path, BadLines], Iterator[tuple[int, Row]]]
DELIMITERS = ",;\t"


def reader(path: Path) -> Reader:
    """Returns what reads a file, by its name without the compression."""
    name = path.with_suffix("") if path.suffix in OPENERS else path
    return READERS.get(name.suffix, text_rows)


def json_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    """Gives a row for each line that is a JSON object."""
    for number, line in lines(path, bad_lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=unique, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            bad_lines(path, number, f"not JSON ({reason(error)})")
            continue
        if not isinstance(row, dict):
            bad_lines(path, number, f"not a JSON object but a {type(row).__name__}")
        elif "\\u" in line and not is_unicode(json.dumps(row, ensure_ascii=False)):
            bad_lines(path, number, "not text but half of a character (a lone surrogate)")
        else:
            yield number, row


def unique(pairs: list[tuple[str, Any]]) -> Row:
    """Returns a JSON object, in which no name may stand twice."""
    row = dict(pairs)
    if len(row) != len(pairs):
        check_names([name for name, _ in pairs])
    return row


def refuse_constant(name: str) -> None:
    """Refuses NaN and Infinity, which Python writes and JSON has not."""
    raise ValueError(f"{name} is no value of JSON")


def csv_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    """Gives the rows of a table with commas, semicolons or tabs, whatever parts its first line
    most."""
    found = (line for _, line in lines(path, bad_lines))
    first = next(found, "")
    delimiter = max(DELIMITERS, key=lambda x: len(next(csv.reader([first], delimiter=x), [])))
    return table_rows(path, csv.reader(chain([first], found), delimiter=delimiter), bad_lines)


def tsv_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    """Gives the rows of a table with tabs and without quotes, as GLUE's: a quotation mark is a
    letter."""
    found = (line for _, line in lines(path, bad_lines))
    return table_rows(path, csv.reader(found, delimiter="\t", quoting=csv.QUOTE_NONE), bad_lines)


def table_rows(path: Path, table: Any, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    """Gives the rows of a table whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # documents are longer than 131,072 letters
    names: list[str] = next(table, [])
    check_names(names, f"{path}: ")
    for fields in table:
        if len(fields) == len(names):
            yield table.line_num, dict(zip(names, fields, strict=True))
        elif fields:
            what = f"{len(fields)} fields where the first line has {len(names)}"
            bad_lines(path, table.line_num, what)


def check_names(names: Sequence[str], place: str = "") -> None:
    """Checks the names of columns.

    Raises:
        ValueError: If one stands twice.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{place}the name {twice!r} stands twice; rename one column.")


def parquet_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    """Gives the rows of a Parquet file."""
    arrow = pyarrow()
    number = 0
    with opened(path) as file:
        try:
            table = arrow.parquet.ParquetFile(file)
            check_names(table.schema_arrow.names, f"{path}: ")
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except arrow.ArrowException as error:
            raise OSError(str(error)) from error


def text_rows(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Row]]:
    """Gives a row for each line of a text."""
    for number, line in lines(path, bad_lines):
        yield number, {"text": line.rstrip("\r\n")}


READERS: dict[str, Reader] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".ndjson": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}
