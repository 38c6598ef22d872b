"""What these scripts share: rows that are kept, processes of their own, runs in turn."""

from __future__ import annotations

import argparse
import csv
import fcntl
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("NYSTROMER_DATA", Path(__file__).parents[2] / "shared" / "data"))
MACHINE = {
    "torch": torch.__version__,
    "cpu": platform.processor() or platform.machine(),
    "threads": torch.get_num_threads(),
}
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED_ONCE = ["nystromer.bench.worker", "rich.progress"]
PROCESSES.set_forkserver_preload(IMPORTED_ONCE)


def options(description: str, output: Path) -> argparse.ArgumentParser:
    """--quick and --output."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=output, help=f"default: {output.name}")
    return parser


def complete(
    path: Path, cases: Sequence[Any], measure: Callable[[Any], dict[str, Any]], fresh: bool = False
) -> list[dict[str, str]]:
    """The rows of the file, once it has one for each of the cases, written after every case.

    Args:
        cases: Dataclasses of one kind: their fields are the first columns.
        measure: The other columns of a case.
        fresh: Whether cases that the file has are measured again.
    """
    names = [field.name for field in fields(cases[0])]
    rows = {tuple(row[name] for name in names): row for row in read(path)}
    todo = [case for case in cases if fresh or _key(case) not in rows]
    for case in track(todo, "measuring", console=Console(stderr=True)):
        row = {**asdict(case), **measure(case), **MACHINE}
        rows[_key(case)] = {name: text(value) for name, value in row.items()}
        write(list(rows.values()), path)
    return list(rows.values())


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results(name: str) -> list[dict[str, str]]:
    return read(RESULTS / f"{name}.csv")


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def write(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Whole or not at all, with the columns of the last row."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[-1])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock; it ends with the process, however that ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """function(*arguments) in a process of its own; what it raises is raised here."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(function, *arguments).result()


def in_turn(
    calls: Sequence[Callable[[], object]], repeats: int, time_limit: float
) -> list[list[float]]:
    """Seconds of every call, a list a round; no round starts once `time_limit` is over."""
    rounds: list[list[float]] = []
    while len(rounds) < repeats and sum(map(sum, rounds)) < time_limit:
        rounds.append([])
        for call in calls:
            start = time.perf_counter()
            call()
            rounds[-1].append(time.perf_counter() - start)
    return rounds


def median_ms(rounds: list[list[float]], i: int) -> float:
    return 1e3 * statistics.median(times[i] for times in rounds)


def median_ratio(rounds: list[list[float]], i: int, j: int) -> float:
    """Of call i to call j of the same round."""
    return statistics.median(times[i] / times[j] for times in rounds)


def _key(case: Any) -> tuple[str, ...]:
    return tuple(text(value) for value in asdict(case).values())


def text(value: object) -> str:
    """As it stands in a row."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
