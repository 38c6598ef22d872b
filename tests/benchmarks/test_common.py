import math
import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import pytest
import torch

from benchmarks import common


@dataclass(frozen=True)
class Case:
    name: str
    n: int


def test_complete_measures_only_what_is_missing(tmp_path):
    path, a, b, c = tmp_path / "rows.csv", Case("a", 1), Case("b", 2), Case("c", 3)

    def until_b(case):
        if case == b:
            raise KeyboardInterrupt
        return {"ms": 0.123456, "note": None}

    with pytest.raises(KeyboardInterrupt):
        common.complete(path, [a, b], until_b)
    assert [(row["name"], row["ms"], row["note"]) for row in common.read(path)] == [
        ("a", "0.1235", "")
    ]
    common.complete(path, [a, b, c], lambda case: {"ms": case.n, "note": "later"})
    rows = common.complete(path, [b], lambda case: {"ms": 20, "note": ""}, fresh=True)
    assert [(row["name"], row["ms"]) for row in rows] == [("a", "0.1235"), ("b", "20"), ("c", "3")]
    assert rows == common.read(path)
    assert rows[0]["torch"] == common.MACHINE["torch"]


def test_fresh_process_is_another_and_its_failure_is_ours():
    common.PROCESSES.set_forkserver_preload([])  # nothing here needs torch
    assert common.fresh_process(os.getpid) not in (os.getpid(), common.fresh_process(os.getpid))
    with pytest.raises(ValueError, match="invalid literal"):
        common.fresh_process(int, "x")
    with pytest.raises(BrokenProcessPool):
        common.fresh_process(os._exit, 1)


def test_in_turn_times_rounds_until_the_limit(monkeypatch):
    now, called = [0.0], []

    def call(name, seconds):
        called.append(name)
        now[0] += seconds

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    calls = [lambda: call("a", 3.0), lambda: call("b", 1.0)]
    assert common.in_turn(calls, repeats=2, time_limit=100) == [[3.0, 1.0]] * 2
    assert common.in_turn(calls, repeats=9, time_limit=9) == [[3.0, 1.0]] * 3
    assert called == ["a", "b"] * 5


def test_median_ratio_is_of_pairs():
    rounds = [[4.0, 2.0], [30.0, 10.0], [9.0, 9.0]]
    assert common.median_ratio(rounds, 0, 1) == 2.0
    assert common.median_ms(rounds, 0) == 9000.0


def test_error_of_is_the_outputs_or_a_third_of_the_worst_gradients():
    ones = [torch.ones(4, dtype=torch.float64)] * 3
    found = [1.1 * ones[0], 1.6 * ones[1], ones[2]]
    assert common.error_of(found[:1], ones[:1]) == pytest.approx(0.1)
    assert common.error_of(found, ones) == pytest.approx(0.2)
    assert math.isnan(common.error_of([*found[:2], math.nan * ones[2]], ones))


def test_write_keeps_four_digits_and_the_columns_of_the_last_row(tmp_path):
    common.write([{"ms": 1.23456, "note": None}, {"ms": "0.50", "note": 7}], tmp_path / "rows.csv")
    rows = common.read(tmp_path / "rows.csv")
    assert rows == [{"ms": "1.235", "note": ""}, {"ms": "0.50", "note": "7"}]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
