"""Sentences that say what the numbers of the report mean, whichever way they fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nystromer.bench import Row
from nystromer.recipes.demo.data import Task
from nystromer.recipes.demo.sample import Sample
from nystromer.recipes.demo.twins import Twin

ALIKE = 0.05  # times closer than this are called the same: machines are noisy


def by_length(rows: Sequence[Row]) -> list[tuple[int, Row, Row]]:
    """Returns (N, exact, Nyström), shortest first."""
    exact = {row.case.n: row for row in rows if row.case.method == "exact"}
    nystrom = {row.case.n: row for row in rows if row.case.method != "exact"}
    return [(n, exact[n], nystrom[n]) for n in sorted(exact)]


def both_times(rows: Sequence[Row]) -> list[tuple[int, float, float]]:
    """Returns (N, seconds of exact, seconds of Nyström) where both have a time."""
    return [(n, e.seconds, b.seconds) for n, e, b in by_length(rows) if e.seconds and b.seconds]


def loses(exact: float, nystrom: float) -> bool:
    """Says whether Nyström's cost is more than exact's, beyond noise."""
    return nystrom > exact * (1 + ALIKE)


def compared(exact: float, nystrom: float, more: str, less: str, times: str = " times") -> str:
    """Returns Nyström's number in words against exact's: "3.2 times faster"."""
    ratio = exact / nystrom
    if not loses(exact, nystrom) and not loses(nystrom, exact):
        return "about the same"
    factor = max(ratio, 1 / ratio)
    written = f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"
    return f"{written}{times} {less if ratio > 1 else more}"


def faster(exact: float, nystrom: float) -> str:
    """Returns words like "3.2× faster", for a table or a tile."""
    return compared(exact, nystrom, "slower", "faster", times="×")


@dataclass(frozen=True)
class Tile:
    """Holds a number in large letters, and what it means."""

    number: str
    meaning: str


def tiles(rows: Sequence[Row], twins: dict[str, Twin]) -> list[Tile]:
    """Returns the three numbers to remember."""
    exact, nystrom = twins["exact"], twins["nystrom"]
    n, exact_seconds, nystrom_seconds = both_times(rows)[-1]
    return [
        Tile(
            faster(exact_seconds, nystrom_seconds),
            f"attention over {n:,} tokens, the longest input that both kinds ran on",
        ),
        Tile(
            faster(exact.seconds_per_step, nystrom.seconds_per_step),
            "a training step of a small model with Nyström attention",
        ),
        Tile(
            f"{nystrom.accuracy:.0%} vs {exact.accuracy:.0%}",
            "of unseen source code named right by that model and by its twin with exact attention",
        ),
    ]


def short_answer(rows: Sequence[Row], task: Task, twins: dict[str, Twin]) -> str:
    """Returns what the whole report comes to."""
    times = both_times(rows)
    slower = [n for n, exact, nystrom in times if loses(exact, nystrom)]
    gains = [(n, e, b) for n, e, b in times if n > max(slower, default=0)]
    if not gains:
        speed = f"Exact attention was the faster choice up to {times[-1][0]:,} tokens."
    else:
        clearly = all(loses(nystrom, exact) for _, exact, nystrom in gains)
        speed = (
            f"From {gains[0][0]:,} tokens on, Nyström attention was "
            f"{'faster than' if clearly else 'at least as fast as'} exact attention"
            f"{f'; at {listed(slower)} it was slower' if slower else ''}."
        )
    return (
        f"{speed} A small model with Nyström attention, trained once, was {verdict(task, twins)} "
        "its twin with exact attention."
    )


def verdict(task: Task, twins: dict[str, Twin]) -> str:
    """Says whether the Nyström twin is as accurate as the exact one."""
    difference = twins["nystrom"].accuracy - twins["exact"].accuracy
    if abs(difference) <= accuracy_uncertainty(task, twins):
        return "as accurate, within what chance explains, as"
    return "less accurate than" if difference < 0 else "more accurate than"


def scaling_claims(rows: Sequence[Row]) -> list[str]:
    """Returns what the measurement by length shows."""
    n, exact, nystrom = both_times(rows)[-1]
    claims = [
        f"At N = {n:,}, the longest that both ran, exact attention took {duration(exact)} and "
        f"Nyström {duration(nystrom)}: {compared(exact, nystrom, 'slower', 'faster')}."
    ]
    n, last_exact, last_nystrom = by_length(rows)[-1]
    if last_exact.seconds is None and last_nystrom.seconds is not None:
        claims.append(
            f"At N = {n:,} Nyström took {duration(last_nystrom.seconds)}. Exact attention has no "
            f"time there ({last_exact.note})."
        )
    sizes = [
        (n, e.peak_bytes, b.peak_bytes)
        for n, e, b in by_length(rows)
        if e.peak_bytes and b.peak_bytes  # not every system tells
    ]
    if sizes:
        n, most, nystrom_most = sizes[-1]
        claims.append(
            f"Memory at N = {n:,}: {size(most)} for exact attention and {size(nystrom_most)} for "
            f"Nyström ({compared(most, nystrom_most, 'more', 'less')}). PyTorch's exact attention "
            "makes the large table in pieces and keeps none of it: what it costs is time."
        )
    slower = [n for n, exact, nystrom in both_times(rows) if loses(exact, nystrom)]
    if slower:
        claims.append(
            f"At N = {listed(slower)} exact attention was faster: there is nothing to gain there."
        )
    return claims


def error_claim(rows: Sequence[Row]) -> str:
    """Returns how far Nyström's output is from that of exact attention."""
    off = [(n, nystrom.error) for n, _, nystrom in by_length(rows) if nystrom.error is not None]
    if not off:
        return ""
    (short, first), (long, last) = off[0], off[-1]
    return (
        f"Nyström's output is not that of exact attention: on these made-up inputs, which say more "
        f"the longer they get, it is {first:.1%} off at N = {short:,} and {last:.0%} at "
        f"N = {long:,}. Whether a model that is trained with it is any worse is another question."
    )


def accuracy_claim(task: Task, twins: dict[str, Twin]) -> str:
    """Returns how often each twin was right."""
    exact, nystrom = twins["exact"], twins["nystrom"]
    points = 100 * abs(nystrom.accuracy - exact.accuracy)
    return (
        f"With exact attention the model named the right package for {exact.accuracy:.1%} of "
        f"{len(task.held_out)} held-out windows, with Nyström for {nystrom.accuracy:.1%}; always "
        f"giving the most frequent answer is right for {task.majority_accuracy():.1%}. The twins "
        f"are {points:.1f} percentage points apart, and windows chosen by chance could part them "
        f"by {100 * accuracy_uncertainty(task, twins):.1f}: in this run the Nyström twin was "
        f"{verdict(task, twins)} the exact one."
    )


def accuracy_uncertainty(task: Task, twins: dict[str, Twin]) -> float:
    """Returns twice the standard error of the twins' difference in accuracy, in pairs."""
    labels = np.array([task.packages.index(window.package) for window in task.held_out])
    right = {name: (twin.predictions == labels).astype(float) for name, twin in twins.items()}
    return float(2 * np.std(right["nystrom"] - right["exact"]) / np.sqrt(len(labels)))


def cost_claim(twins: dict[str, Twin], length: int) -> str:
    """Returns what a training step of each twin costs."""
    exact, nystrom = twins["exact"], twins["nystrom"]
    time = compared(exact.seconds_per_step, nystrom.seconds_per_step, "slower", "faster")
    memory = compared(exact.peak_bytes, nystrom.peak_bytes, "more", "less")
    return (
        f"A training step on windows of {length:,} bytes took {duration(nystrom.seconds_per_step)} "
        f"with Nyström attention and {duration(exact.seconds_per_step)} with exact attention "
        f"({time}), and its tensors {size(nystrom.peak_bytes)} and {size(exact.peak_bytes)} of "
        f"memory ({memory})."
    )


def sample_claim(sample: Sample) -> str:
    """Returns how alike the two rows of attention are."""
    return (
        f"The Nyström row and the row that exact attention gives with the same weights correlate "
        f"with r = {sample.agreement():.2f}."
    )


def duration(seconds: float) -> str:
    """Returns a time in words, with a space that does not break."""
    return (
        f"{seconds:.3g}\N{NO-BREAK SPACE}s"
        if seconds >= 1
        else f"{1000 * seconds:.3g}\N{NO-BREAK SPACE}ms"
    )


def size(num_bytes: float) -> str:
    """Returns a size in MiB, with a space that does not break."""
    return f"{num_bytes / 2**20:,.0f}\N{NO-BREAK SPACE}MiB"


def listed(ns: Sequence[int]) -> str:
    """Returns words like "256, 512 and 1,024"."""
    *front, last = (f"{n:,}" for n in ns)
    return f"{', '.join(front)} and {last}" if front else last
