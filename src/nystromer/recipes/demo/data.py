"""Makes the task: which package of Python's standard library is a window of source code from?"""

from __future__ import annotations

import random
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Present in some installations of Python and missing in others, or not source people wrote.
SKIPPED = {"distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter"}
SKIPPED |= {"turtledemo", "venv"}
MAX_HELD_OUT = 40  # windows of a package
MIN_FILES = 3  # a package needs files to learn from and other files to be asked about


@dataclass(frozen=True)
class Window:
    """Holds a piece of source code: `text` is the bytes of `file` (its path below the standard
    library) from `start` on."""

    file: str
    package: str
    start: int
    text: bytes


@dataclass(frozen=True)
class Task:
    """Holds windows of equal length; no file has windows in both parts."""

    packages: list[str]
    train: list[Window]
    held_out: list[Window]

    def majority_accuracy(self) -> float:
        """Returns the accuracy of the best constant answer: the most frequent package."""
        counts = Counter(window.package for window in self.held_out)
        return max(counts.values()) / len(self.held_out)


def stdlib_task(
    *,
    length: int = 2048,
    num_packages: int = 10,
    max_windows: int = 300,
    held_out_share: float = 0.25,
    seed: int = 0,
    stdlib: Path | None = None,
) -> Task:
    """Cuts windows out of the installed Python's own source, from the packages with most bytes.

    Args:
        length: Bytes of a window. One starts every quarter of a window in the files to learn from;
            in the files held out they do not overlap. The tail of a file is left out.
        num_packages: Classes; fewer where the installation holds fewer packages.
        max_windows: Of one package to learn from, so that none drowns the others.
        held_out_share: About how much of a package's bytes is held out, in whole files.
        seed: Of the split and of the choice above max_windows.
        stdlib: Where the source is; the running Python's if None.

    Raises:
        ValueError: If fewer than two packages have enough files of at least `length` bytes.
    """
    stdlib = Path(sysconfig.get_paths()["stdlib"]) if stdlib is None else stdlib
    sources = {
        folder.name: _sources(folder, length)
        for folder in sorted(stdlib.iterdir())
        if (folder / "__init__.py").is_file()
        and not folder.name.startswith("_")
        and folder.name not in SKIPPED
    }
    sources = {name: files for name, files in sources.items() if len(files) >= MIN_FILES}
    if len(sources) < 2:
        raise ValueError(
            f"`stdlib` must hold at least two packages with {MIN_FILES} source files of {length} "
            f"bytes, got {len(sources)} in {stdlib}; use a Python that ships its .py files."
        )
    by_size = sorted(sources, key=lambda name: -sum(len(text) for _, text in sources[name]))
    packages = sorted(by_size[:num_packages])
    train: list[Window] = []
    held_out: list[Window] = []
    for package in packages:
        rng = random.Random(f"{seed} {package}")
        parts = split_by_file(sources[package], held_out_share, rng)
        for part, files, step, limit in (
            (train, parts[0], max(length // 4, 1), max_windows),
            (held_out, parts[1], length, MAX_HELD_OUT),
        ):
            windows = [
                Window(path.relative_to(stdlib).as_posix(), package, i, text[i : i + length])
                for path, text in files
                for i in range(0, len(text) - length + 1, step)
            ]
            part += rng.sample(windows, min(limit, len(windows)))
    return Task(packages, train, held_out)


def split_by_file(
    files: Sequence[tuple[Path, bytes]], share: float, rng: random.Random
) -> tuple[list[tuple[Path, bytes]], list[tuple[Path, bytes]]]:
    """Holds out whole files in random order until they are `share` of all bytes, at most half."""
    total = sum(len(text) for _, text in files)
    train, held_out, held_bytes = [], [], 0
    for path, text in rng.sample(list(files), len(files)):
        if held_bytes < share * total and held_bytes + len(text) <= total / 2:
            held_out.append((path, text))
            held_bytes += len(text)
        else:
            train.append((path, text))
    return train, held_out


def _sources(package: Path, length: int) -> list[tuple[Path, bytes]]:
    """Returns the package's source files of at least one window, without its tests."""
    paths = [
        path
        for path in sorted(package.rglob("*.py"))
        if not {"test", "tests"} & set(path.relative_to(package).parts)
    ]
    return [(path, text) for path in paths if len(text := path.read_bytes()) >= length]
