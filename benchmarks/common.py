"""What all scripts share: their command lines, rows that are kept, and how things are timed."""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"
Row = dict[str, str]
Rows = list[Row]
MACHINE = {
    "torch": torch.__version__,
    "cpu": platform.processor() or platform.machine(),
    "threads": torch.get_num_threads(),
}
DIRECTIONS = ("forward", "forward + backward")
TOLERANCES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}  # of `error_of`
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED_ONCE = ["nystromer.bench.worker", "rich.progress"]
PROCESSES.set_forkserver_preload(IMPORTED_ONCE)


def command_line(docstring: str) -> argparse.ArgumentParser:
    """Returns a parser whose --help shows the docstring of the script."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=docstring, formatter_class=layout)


def options(docstring: str, name: str) -> argparse.ArgumentParser:
    """Returns a parser with --quick, --fresh and --output, by default results/NAME.csv."""
    parser = command_line(docstring)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    output = RESULTS / f"{name}.csv"
    parser.add_argument("--output", type=Path, default=output, help=f"default: {output.name}")
    return parser


def progress(cases: Iterable[Any]) -> Iterable[Any]:
    """Yields the cases while a bar on stderr shows how many are done."""
    from rich.console import Console
    from rich.progress import track

    return track(cases, "measuring", console=Console(stderr=True))


def complete(
    path: Path, cases: Sequence[Any], measure: Callable[[Any], dict[str, Any]], fresh: bool = False
) -> Rows:
    """Measures the cases that the file has no row for, and returns all of its rows.

    The file is written after every case, so that a run can be stopped and go on.

    Args:
        cases: Dataclasses of one kind: their fields are the first columns.
        measure: Returns the other columns of a case.
        fresh: Whether cases that the file has are measured again.
    """
    names = [field.name for field in fields(cases[0])]
    rows = {tuple(row[name] for name in names): row for row in read(path)}
    todo = [case for case in cases if fresh or _key(case) not in rows]
    for case in progress(todo):
        row = {**asdict(case), **measure(case), **MACHINE}
        rows[_key(case)] = {name: text(value) for name, value in row.items()}
        write(list(rows.values()), path)
    return list(rows.values())


def _key(case: Any) -> tuple[str, ...]:
    return tuple(text(value) for value in asdict(case).values())


def results(name: str) -> Rows:
    """Returns the committed rows of that name."""
    return read(RESULTS / f"{name}.csv")


def read(path: Path) -> Rows:
    """Returns the rows of a file, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Writes the file whole or not at all; the last row says what its columns are."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[-1])
        writer.writeheader()
        writer.writerows({name: text(value) for name, value in row.items()} for row in rows)
    os.replace(partial, path)


def text(value: object) -> str:
    """Returns a value as it stands in a file: four digits of a float, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    """Returns a table of README or docs."""
    table = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Calls function(*arguments) in a process of its own; what it raises is raised here."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(function, *arguments).result()


def in_turn(
    calls: Sequence[Callable[[], object]], repeats: int, time_limit: float
) -> list[list[float]]:
    """Times the calls one after the other, again and again, and returns the seconds by round.

    No round starts once `time_limit` seconds are over.
    """
    rounds: list[list[float]] = []
    while len(rounds) < repeats and sum(map(sum, rounds)) < time_limit:
        rounds.append([])
        for call in calls:
            start = time.perf_counter()
            call()
            rounds[-1].append(time.perf_counter() - start)
    return rounds


def median_ms(rounds: list[list[float]], i: int) -> float:
    """Returns the median time of call i in milliseconds."""
    return 1e3 * statistics.median(times[i] for times in rounds)


def median_ratio(rounds: list[list[float]], i: int, j: int) -> float:
    """Returns the median, over the rounds, of the time of call i divided by that of call j."""
    return statistics.median(times[i] / times[j] for times in rounds)


@torch.no_grad()
def error_of(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Returns the relative error of an output, found[0], or a third of its worst gradient's.

    The larger of the two counts; it is NaN if anything is.
    """
    errors = [
        (x.double() - y).norm() / y.norm().clamp(min=1e-30)
        for x, y in zip(found, wanted, strict=True)
    ]
    return float(torch.stack([errors[0], *(error / 3 for error in errors[1:])]).max())
