"""Measures time, peak memory and error of attention over N, every case in a process of its own."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from nystromer.checks import check_positive

METHODS = {
    "exact": "torch's scaled_dot_product_attention",
    "eager": "Nyström, the equations as written",
    "blocked": "Nyström, no N x M table",
    "native": "Nyström, one call into C++",
    "module": "NystromAttention, projections and convolution included",
    "nystrom-attention": "the package of that name, projections and convolution included",
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
STARTUP = 60.0  # seconds that a process may take for all but the runs it times


@dataclass(frozen=True)
class Case:
    """Names one measurement: a sequence of n tokens through one method.

    Args:
        method: One of `METHODS`. "exact", "eager", "blocked" and "native" are the bare
            operation on query, key, value; "module" and "nystrom-attention" are whole layers over
            heads * head_dim features, with a convolution of 33 taps: compare them to each other.
        n: N, tokens.
        num_landmarks: M.
        heads, head_dim: H and D.
        dtype: "float32", "float64", "float16" or "bfloat16".
        backward: Whether the gradients are measured too.

    Raises:
        ValueError: If a size is below 1, or the method or dtype is unknown.
    """

    method: str
    n: int
    num_landmarks: int = 64
    heads: int = 8
    head_dim: int = 64
    dtype: str = "float32"
    backward: bool = False

    def __post_init__(self) -> None:
        for name in ("n", "num_landmarks", "heads", "head_dim"):
            check_positive(name, getattr(self, name))
        for name, known in (("method", METHODS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                listed = ", ".join(map(repr, known))
                raise ValueError(f"`{name}` must be one of {listed}, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Row:
    """Holds what was measured of a case: None, with a note that says why, where nothing was.

    Args:
        seconds: Median time of a run.
        peak_bytes: Growth of resident memory during a run, over its inputs; results included.
        error: Relative error of the output to exact attention in float64, over at most 256 queries;
            None for whole layers.
        device: The processor and its threads.
    """

    case: Case
    seconds: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    note: str = ""
    device: str = ""
    torch_version: str = torch.__version__


def sweep(
    ns: Sequence[int],
    methods: Sequence[str],
    *,
    num_landmarks: int = 64,
    heads: int = 8,
    head_dim: int = 64,
    dtype: str = "float32",
    backward: bool = False,
    repeats: int = 5,
    time_limit: float = 20.0,
    known: Sequence[Row] = (),
    on_case: Callable[[Case], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measures every method at every length, shortest first.

    A run is predicted from the method's last row, quadratic in N for exact attention and linear for
    the others; where it would take longer than the limit, its row has a note instead of a number.

    Args:
        ns: Lengths, at least one.
        methods: Of `METHODS`, at least one.
        num_landmarks, heads, head_dim, dtype, backward: As `Case`.
        repeats, time_limit: As `measure`.
        known: Rows of an earlier sweep; their cases are not measured again.
        on_case, on_row: Called before and after a case: for a progress bar.

    Raises:
        ValueError: If a list is empty, or as `Case` and `measure`.
    """
    for name, listed in (("ns", ns), ("methods", methods)):
        if not listed:
            raise ValueError(f"`{name}` must have at least one entry, got {listed!r}.")
    shape = (num_landmarks, heads, head_dim, dtype, backward)
    cases = [Case(method, n, *shape) for n in sorted(ns) for method in methods]
    found = {row.case: row for row in known}
    rows: list[Row] = []
    for case in cases:
        if on_case is not None:
            on_case(case)
        seconds = _predicted_seconds(case, rows)
        if case in found:
            row = found[case]
        elif seconds <= time_limit:
            row = measure(case, repeats=repeats, time_limit=time_limit)
        else:
            row = Row(case, note=f"skipped: would take about {seconds:.0f} s", device=device())
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return rows


def measure(case: Case, *, repeats: int = 5, time_limit: float = 20.0) -> Row:
    """Measures one case in a process of its own, so that peak memory is its own.

    The speed of a Nyström method counts only after its output (and gradients) agree with the eager
    equations in float64; otherwise the row has a note instead.

    Args:
        repeats: Runs whose median is the time, at least 1; fewer once they have taken `time_limit`.
        time_limit: Seconds, above 0.

    Raises:
        ValueError: If repeats is below 1, or time_limit is not above 0.
    """
    check_positive("repeats", repeats)
    if not 0 < time_limit < math.inf:
        raise ValueError(f"`time_limit` must be above 0 seconds and finite, got {time_limit}.")
    if case.method == "nystrom-attention" and not importlib.util.find_spec("nystrom_attention"):
        note = "not installed: pip install nystrom-attention"
        return Row(case, note=note, device=device())
    settings = json.dumps({"case": asdict(case), "repeats": repeats, "time_limit": time_limit})
    command = [sys.executable, "-m", "nystromer.bench.worker", settings]
    allowed = STARTUP + 3 * time_limit
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=allowed)
    except subprocess.TimeoutExpired:
        return Row(case, note=f"stopped after {allowed:.0f} s", device=device())
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        reason = last[0].removeprefix("NotImplementedError: ").rstrip(".")
        return Row(case, note=f"failed: {reason}", device=device())
    return Row(case, **json.loads(done.stdout), device=device())


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Writes one line a row, the fields of its case first, whole or not at all."""
    partial = Path(f"{path}.{secrets.token_hex(8)}.partial")
    with partial.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_CASE_TYPES, *_RESULT_TYPES])
        writer.writeheader()
        for row in rows:
            result = asdict(row)
            writer.writerow({**result.pop("case"), **result})
    partial.replace(path)


def read_csv(path: str | Path) -> list[Row]:
    """Returns the rows that `write_csv` wrote."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [
            Row(Case(**_parsed(line, _CASE_TYPES)), **_parsed(line, _RESULT_TYPES))
            for line in csv.DictReader(file)
        ]


def device() -> str:
    """Returns the processor in words: "cpu AVX2, 2 threads"."""
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _predicted_seconds(case: Case, rows: Sequence[Row]) -> float:
    """Returns what a case will take, from the last row of its method that has a time, or 0."""
    power = 2 if case.method == "exact" else 1
    for row in reversed(rows):
        if row.case.method == case.method and row.seconds is not None:
            return row.seconds * (case.n / row.case.n) ** power
    return 0.0


_CASE_TYPES = {field.name: str(field.type) for field in fields(Case)}
_RESULT_TYPES = {field.name: str(field.type) for field in fields(Row)[1:]}


def _parsed(line: dict[str, str], types: dict[str, str]) -> dict[str, Any]:
    def value(text: str, kind: str) -> str | int | float | None:
        if kind in ("str", "bool"):
            return text == "True" if kind == "bool" else text
        if text == "":
            return None
        return int(text) if kind.startswith("int") else float(text)

    return {name: value(line[name], kind) for name, kind in types.items()}
