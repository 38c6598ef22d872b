"""Many trainings by commands of nystromer, one after the other, that can be stopped and go on."""

from __future__ import annotations

import argparse
import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows


def options(docstring: str, name: str) -> argparse.ArgumentParser:
    """Returns a parser with "run" or "gather", the folder of the runs, --data-dir and --output."""
    parser = common.command_line(docstring)
    parser.add_argument("what", choices=["run", "gather"])
    parser.add_argument("folder", type=Path, help="holds a folder for every run")
    parser.add_argument("--data-dir", type=Path, help="folder of the data")
    output = common.RESULTS / f"{name}.csv"
    parser.add_argument("--output", type=Path, default=output, help=f"default: {output.name}")
    return parser


def train_once(words: list[str], output: Path) -> None:
    """Calls nystromer with these words unless the run is finished or another process works on it.

    A run that was stopped goes on.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output.with_suffix(".lock")) as mine:
        if mine and not (output / "metrics.json").exists():
            words = [*words, "--output", str(output), "--resume"]
            print("nystromer", *words, flush=True)
            subprocess.run([sys.executable, "-m", "nystromer", *words], check=True)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock, and yields whether nobody else does; it ends with the process, however."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def gather(
    arguments: argparse.Namespace,
    row_of: Callable[[Path], dict[str, object]],
    names: tuple[str, ...],
) -> None:
    """Writes the rows of all finished runs to --output, in place of its rows with the same names.

    Other rows of the file are kept.
    """
    rows: Rows = common.read(arguments.output)
    rows += [
        {name: common.text(value) for name, value in row_of(path.parent).items()}
        for path in sorted(arguments.folder.glob("*/metrics.json"))
    ]
    by_name = {tuple(row[name] for name in names): row for row in rows}
    common.write(list(by_name.values()), arguments.output)
