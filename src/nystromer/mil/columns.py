"""Columns of people's tables: what they are called, and reading a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".tsv", ".parquet")
BAG = ("slide_id", "slide", "bag", "bag_id", "bag_name", "filename", "slide_name", "image_id", "id")
PATIENT = ("case_id", "patient", "patient_id", "case")
LABEL = ("label", "bag_label", "target", "class", "y_true")
KNOWN = {*BAG, *PATIENT, *LABEL, "x", "y", "instance", "instance_id", "instance_label", "split"}


def read_table(path: Path, *, text: bool = True) -> Any:
    """Returns a CSV, TSV or Parquet file as a pandas table.

    Args:
        path: The file.
        text: Every cell is a string; else only names are, so that 007 stays 007.

    Raises:
        ValueError: If the file cannot be read or has no rows.
        ImportError: If pandas, or pyarrow for Parquet, is missing.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Tables need pandas: pip install nystromer[mil].") from error
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"A table must be {', '.join(SUFFIXES)}, got {path}; save it as .csv.")
    try:
        if suffix == ".parquet":
            table = pandas.read_parquet(path)
            table = table.astype(str).where(table.notna(), None) if text else table
        else:
            names = {x for name in BAG for x in (name, name.upper(), name.capitalize())}
            dtype: Any = str if text else dict.fromkeys(names, str)
            table = pandas.read_csv(path, sep="\t" if suffix == ".tsv" else ",", dtype=dtype)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise ValueError(f"{path} cannot be read as a table: {reason.rstrip('. ')}.") from error
    if not len(table):
        raise ValueError(f"{path} has no rows; a table needs one line of names and one a bag.")
    return table.rename(columns=lambda name: str(name).strip())


def find(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """Returns the column that goes by the first of the names, whatever its case, or None."""
    by_name = {str(column).lower(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)


def column(table: Any, names: Sequence[str], path: Path, what: str) -> str:
    """Returns the column of one of the names.

    Raises:
        ValueError: If there is none.
    """
    found = find(table.columns, names)
    if found is None:
        raise ValueError(
            f"{path} has no column for {what}; it has {', '.join(map(str, table.columns))}, and "
            f"{', '.join(names)} are understood."
        )
    return found
