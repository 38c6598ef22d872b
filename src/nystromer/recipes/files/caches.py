"""Folders that are made once and then kept, each by the fingerprint of what it is made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from nystromer.recipes.files.errors import said_when_unwritable
from nystromer.recipes.files.manifest import problem, write_manifest
from nystromer.recipes.files.outputs import beside


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """Returns the folder, made anew unless it is there and whole.

    Args:
        folder: Its name says what it is made from.
        make: Writes into the empty folder that it is given.

    Raises:
        ValueError: If the system refuses it, or as `make`.
    """
    if not problem(folder, hashes=False):
        return folder
    partial = beside(folder)
    with said_when_unwritable(folder, "The cache"):
        partial.mkdir(parents=True)
    try:
        make(partial)
        with said_when_unwritable(folder, "The cache"):
            write_manifest(partial)
            if problem(folder, hashes=False):  # no other process was faster
                if folder.exists():
                    folder.rename(cut := beside(folder))
                    shutil.rmtree(cut)
                partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
