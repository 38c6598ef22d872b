"""Lines of text files, also compressed, and what happens to those that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

LONGEST = 2**28  # letters of a line


@dataclass
class BadLines:
    """Decides what happens to a line that cannot be read.

    Args:
        skip: True counts it and goes on, False is an error; None is one too, in a command that has
            no option to go on.
    """

    skip: bool | None = None
    count: int = 0

    def __call__(self, path: Path | str, line: int, what: str) -> None:
        if not self.skip:
            also = ", or go on without such lines by --skip-bad-lines"
            hint = "" if self.skip is None else also
            raise ValueError(f"{path}, line {line}: {what}; correct it{hint}.")
        self.count += 1


def lines(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, str]]:
    """Gives the lines numbered from 1, whether they end in \\n, \\r\\n or \\r; those that are not
    UTF-8, or hold a zero byte as no text does, are bad."""
    with (
        opened(path) as binary,
        io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as file,
    ):
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), ""), 1):
            if len(line) == LONGEST:
                raise ValueError(f"{path}, line {number}: must have less than {LONGEST:,} letters.")
            if not is_unicode(line):
                bad_lines(path, number, "not UTF-8 text")
            elif "\0" in line:
                bad_lines(path, number, "not text but binary (a zero byte)")
            else:
                yield number, line


def is_unicode(value: str) -> bool:
    """Says whether all letters are characters, not halves of one (lone surrogates)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def opened(path: Path) -> IO[bytes]:
    """Opens a file, and unpacks it where its name says so."""
    return OPENERS.get(path.suffix, open)(path, "rb")


def open_zstandard(path: Path, mode: str) -> IO[bytes]:
    """Opens a .zst file."""
    return io.BufferedReader(pyarrow().input_stream(str(path), compression="zstd"))


def pyarrow() -> Any:
    """Returns the library pyarrow.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = "Parquet and .zst files need pyarrow: pip install pyarrow."
        raise ImportError(message) from error
    return pyarrow


OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": open_zstandard,
}
