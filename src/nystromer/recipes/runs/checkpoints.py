"""Checkpoints: one that exists is whole, which its manifest shows before it is used."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from nystromer.recipes.files.fingerprints import of_file
from nystromer.recipes.files.manifest import problem, write_manifest
from nystromer.recipes.files.outputs import synchronize

PARTIAL = "checkpoint.partial"  # a name that transformers does not take for a checkpoint
RECORD = "run.json"


def complete(folder: Path, name: str) -> None:
    """Gives a checkpoint that was written into the partial folder its name, the manifest last."""
    partial = folder / PARTIAL / name
    write_manifest(partial, run=of_file(folder / RECORD))
    synchronize(partial)
    partial.rename(folder / name)
    (folder / PARTIAL).rmdir()


def last_whole(folder: Path) -> Path | None:
    """Returns the last checkpoint of a run, or the one before if that is damaged; None if there
    is none. A damaged one is said and removed.

    Raises:
        ValueError: If there are some, and all are damaged.
    """
    found = checkpoints(folder)
    problems = {}
    for path in reversed(found):
        problems[path.name] = damage(path)
        if not problems[path.name]:
            for other in list(problems)[:-1]:
                print(
                    f"{other} is damaged ({problems[other]}): going on from {path.name}.",
                    file=sys.stderr,
                )
                discard(folder / other)
            return path
    if found:
        listed = "; ".join(f"{name}: {what}" for name, what in problems.items())
        raise ValueError(
            f"No checkpoint in {folder} is whole ({listed}); bring the files back, or begin anew "
            "in another --output."
        )
    return None


def damage(checkpoint: Path) -> str:
    """Says what is wrong with a checkpoint, or ""."""
    return problem(checkpoint, run=of_file(checkpoint.parent / RECORD))


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a run's folder, the oldest first."""
    found = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((x for x in found if found[x].isdecimal()), key=lambda x: int(found[x]))


def discard(path: Path) -> None:
    """Removes a checkpoint; what is left if that is interrupted is no checkpoint any more."""
    partial = path.with_name(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    path.rename(partial)
    shutil.rmtree(partial)
