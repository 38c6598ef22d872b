"""Fingerprints: hashes of what a run is made from, so that a resumed one knows it again.

Files are read whole, at half a gigabyte a second or more; times of change are not looked at,
since a file that was copied back is the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

PIECE = 2**20  # bytes read at a time
LARGE = 2**30  # bytes that take long enough for a bar
MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}


def of_pieces(pieces: Iterable[bytes | memoryview]) -> str:
    """Returns the hash of bytes one after another."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:32]


def of_file(path: Path) -> str:
    """Returns the hash of a file's content.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            pieces = iter(lambda: file.read(PIECE), b"")
            bar = {"total": -(-size // PIECE), "unit": "MiB", "leave": False}
            return of_pieces(tqdm(pieces, path.name, **bar, disable=size < LARGE))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def of_rows(rows: Iterable[Any]) -> str:
    """Returns the hash of rows, in their order."""
    return of_pieces(f"{json.dumps(row, default=str)}\n".encode() for row in rows)


def of_model(name: str, config: Any = None) -> str:
    """Returns the hash of a model's folder, or the commit of one that comes from the Hub."""
    folder = Path(name)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None))
    files = sorted(x for x in folder.iterdir() if x.suffix in MODEL_FILES and x.is_file())
    return of_pieces(f"{path.name} {of_file(path)}\n".encode() for path in files)
