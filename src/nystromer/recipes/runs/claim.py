"""A folder belongs to one process at a time: a lock, held as long as a run lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nystromer.recipes.files.errors import said_when_unwritable
from nystromer.recipes.files.outputs import folders, is_partial

LOCK = "run.lock"  # one that a killed process left holds nothing


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process; one that was made here and stays empty goes again.

    Of several processes that train together, the first claims it for all.

    Raises:
        ValueError: If another process has it, or the system refuses it.
    """
    if not is_first():
        yield
        return
    with folders(folder):
        lock = FileLock(folder / LOCK)
        with said_when_unwritable(folder):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise ValueError(
                    f"`--output` {folder} belongs to a run that is still going on; wait for it, "
                    "or name another."
                ) from None
        try:
            clear_partial_files(folder)
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()


def clear_partial_files(folder: Path) -> None:
    """Removes the files in a folder that a killed process left unfinished."""
    for path in filter(is_partial, list(folder.iterdir())):
        path.unlink()


def is_something(path: Path) -> bool:
    """Says whether a file is more than what a process leaves that is killed as it begins."""
    return not is_partial(path) and (path.name != LOCK or path.stat().st_size > 0)


def is_first() -> bool:
    """Says whether this is the only process, or the first of several that train together."""
    return os.environ.get("RANK", "0") == "0"
