"""The manifest of a folder: its files with sizes and hashes, written last, read before use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nystromer.recipes.files.fingerprints import of_file

MANIFEST = "manifest.json"


def write_manifest(folder: Path, **about: Any) -> None:
    """Writes the names, sizes and hashes of all files in a folder, and what else is to be known."""
    files = {name: [path.stat().st_size, of_file(path)] for name, path in files_of(folder).items()}
    text = json.dumps({**about, "files": files}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def problem(folder: Path, *, hashes: bool = True, **about: Any) -> str:
    """Says what differs from the manifest of a folder; "" where nothing does.

    Args:
        folder: The folder, which may not exist.
        hashes: Whether to read the files too, not only their sizes.
        about: What the manifest must say besides.
    """
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = stored.pop("files").items()
        wanted = {name: (int(size), str(digest)) for name, (size, digest) in files}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return f"it has no whole {MANIFEST}"
    if stored != about:
        return f"its {MANIFEST} is that of another"
    found = files_of(folder)
    for name in {**wanted, **found}:
        if name not in found:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} is not of it"
        if found[name].stat().st_size != wanted[name][0]:
            return f"{name} has {found[name].stat().st_size:,} bytes, not {wanted[name][0]:,}"
        if hashes and of_file(found[name]) != wanted[name][1]:
            return f"{name} holds something else"
    return ""


def files_of(folder: Path) -> dict[str, Path]:
    """Returns {name: path} of the files in a folder, at any depth, but for the manifest."""
    paths = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in found.items() if name != MANIFEST}
