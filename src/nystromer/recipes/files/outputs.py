"""Files and folders that a command writes: each appears whole, and only where nothing was.

What is written lies beside its place under a fresh name until it is finished. That name is taken
before any work, so that a place which cannot be written to is refused before.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nystromer.recipes.files.errors import said_when_unwritable
from nystromer.recipes.files.manifest import problem, write_manifest

PARTIAL_NAME = re.compile(r"\.[0-9a-f]{16}\.partial")


@contextmanager
def new_file(path: Path, *suffixes: str) -> Iterator[Path]:
    """Gives an empty file to write into, which gets the name `path` if nothing fails.

    Args:
        path: A file that does not exist, in a folder that does.
        suffixes: What its name may end in.

    Raises:
        ValueError: If the path is no such name, or the system refuses it.
    """
    with said_when_unwritable(path):
        if path.suffix not in suffixes or exists(path) or not path.parent.is_dir():
            kinds = " or ".join(suffixes)
            raise ValueError(f"`--output` must be a new {kinds} file in a folder, got {path}.")
        partial = beside(path)
        partial.touch(exist_ok=False)  # exclusively: no file is replaced, no link followed
    try:
        with said_when_unwritable(path):
            yield partial
            synchronize(partial)
            link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, made_by: str | None = None) -> Iterator[Path]:
    """Gives an empty folder to write into, which gets the name `path` if nothing fails.

    Args:
        path: A folder that does not exist or is empty.
        made_by: Then a whole and unchanged former result of this command may be there too; it is
            replaced. A manifest tells it.

    Raises:
        ValueError: If the folder holds anything else, or the system refuses it.
    """
    with said_when_unwritable(path):
        free = is_free(path)
        other = made_by and not free and problem(path, made_by=made_by)
        if not free and (other or made_by is None):
            also = f", and is no former result of it: {other}" if other else ""
            raise ValueError(
                f"`--output` must be a new folder, got {path}, which exists already{also}; name "
                "another."
            )
    with folders(path.parent), said_when_unwritable(path):
        partial = beside(path)
        partial.mkdir()
        try:
            yield partial
            if made_by is not None:
                write_manifest(partial, made_by=made_by)
            synchronize(partial)
            if not free:
                path.rename(former := beside(path))
                shutil.rmtree(former)
            partial.rename(path)  # which replaces nothing but an empty folder
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def folders(path: Path) -> Iterator[None]:
    """Makes a folder and those above it; what was made and is empty at the end goes again.

    Raises:
        ValueError: If the system refuses it.
    """
    with said_when_unwritable(path):
        made = [x for x in (path, *path.parents) if not x.exists()]  # the innermost first
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for x in made:
            with suppress(OSError):
                x.rmdir()


def exists(path: Path) -> bool:
    """Says whether there is anything of that name, a broken link too.

    Raises:
        OSError: If the system cannot tell: a name too long, or a file where a folder should be.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def is_free(path: Path) -> bool:
    """Says whether a folder can be made there: there is nothing, or an empty folder."""
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    return not exists(path) or (empty and not path.is_mount())


def beside(path: Path) -> Path:
    """Returns a name that nothing has, in the same folder and with the same suffix."""
    return path.absolute().with_name(f".{secrets.token_hex(8)}.partial{path.suffix}")


def is_partial(path: Path) -> bool:
    """Says whether a name is one of `beside`: of a file that a kill left unfinished."""
    return PARTIAL_NAME.match(path.name) is not None


def link(partial: Path, path: Path) -> None:
    """Gives a file another name, which nothing may have."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: FAT, for one
        path.touch(exist_ok=False)
        partial.replace(path)


def synchronize(path: Path) -> None:
    """Has a file, or all files of a folder, on the disk before it gets its name."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
