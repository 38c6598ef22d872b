from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nystromer.bench import Case, Row
from nystromer.recipes.demo import claims
from nystromer.recipes.demo.data import Task, Window
from nystromer.recipes.demo.twins import Twin


def rows(**seconds):
    """exact=(...), blocked=(...) at N = 256, 1024, ..."""
    return [
        Row(Case(method, 256 * 4**i), time, 2**20, 0.1, note="" if time else "skipped: too long")
        for method, times in seconds.items()
        for i, time in enumerate(times)
    ]


def task(count):
    windows = [Window("a/b.py", "ab"[i % 2], 0, b"") for i in range(count)]
    return Task(["a", "b"], windows, windows)


def twin(name, wrong, count):
    predictions = np.arange(count) % 2
    predictions[:wrong] = 1 - predictions[:wrong]
    accuracy = 1 - wrong / count
    return Twin(name, None, predictions, accuracy, accuracy, 1.0, 10.0, 10, 2**20, [])


def test_scaling_claims_say_where_nystrom_is_slower():
    said = claims.scaling_claims(rows(exact=(1.0, 8.0, None), blocked=(2.0, 4.0, 8.0)))
    assert said == [
        "At N = 1,024, the longest that both ran, exact attention took 8\N{NO-BREAK SPACE}s and "
        "Nyström 4\N{NO-BREAK SPACE}s: 2.0 times faster.",
        "At N = 4,096 Nyström took 8\N{NO-BREAK SPACE}s. Exact attention has no time there "
        "(skipped: too long).",
        "Memory at N = 4,096: 1\N{NO-BREAK SPACE}MiB for exact attention and "
        "1\N{NO-BREAK SPACE}MiB for Nyström (about the same). PyTorch's exact attention makes the "
        "large table in pieces and keeps none of it: what it costs is time.",
        "At N = 256 exact attention was faster: there is nothing to gain there.",
    ]


@pytest.mark.parametrize(
    ("exact", "nystrom", "answer"),
    [
        ((1.0, 2.0), (3.0, 4.0), "Exact attention was the faster choice up to 1,024 tokens."),
        (
            (3.0, 4.0),
            (1.0, 2.0),
            "From 256 tokens on, Nyström attention was faster than exact attention.",
        ),
        (
            (1.0, 4.0),
            (2.0, 2.0),
            "From 1,024 tokens on, Nyström attention was faster than exact attention; at 256 it",
        ),
    ],
)
def test_short_answer_follows_the_numbers(exact, nystrom, answer):
    twins = {name: twin(name, 20, 200) for name in ("exact", "nystrom")}
    said = claims.short_answer(rows(exact=exact, blocked=nystrom), task(200), twins)
    assert said.startswith(answer)
    assert said.endswith(
        "as accurate, within what chance explains, as its twin with exact attention."
    )


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ((20, 21), "as accurate, within what chance explains, as the exact one"),
        ((20, 80), "less accurate than the exact one"),
        ((80, 20), "more accurate than the exact one"),
    ],
)
def test_accuracy_claim_follows_the_numbers(wrong, verdict):
    twins = {name: twin(name, w, 200) for name, w in zip(("exact", "nystrom"), wrong, strict=True)}
    assert verdict in claims.accuracy_claim(task(200), twins)


def test_cost_claim_says_when_a_step_is_slower():
    exact, nystrom = twin("exact", 0, 10), twin("nystrom", 0, 10)
    slower = dataclasses.replace(nystrom, seconds_per_step=3.0)
    assert "3.0 times slower" in claims.cost_claim({"exact": exact, "nystrom": slower}, 2048)
    assert "about the same" in claims.cost_claim({"exact": exact, "nystrom": nystrom}, 2048)
