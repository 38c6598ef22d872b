import subprocess
from functools import partial

import numpy as np
import pytest
import torch

import oracle
from nystromer import bench, nystrom_attention
from nystromer.bench import Case, Row, measure, read_csv, sweep, worker, write_csv


def small(method, **settings):
    return Case(method, **{"n": 200, "num_landmarks": 16, "heads": 2, "head_dim": 8, **settings})


def test_measure_reports_a_process_of_its_own():
    ballast = torch.ones(50_000_000)  # 200 MB of this process, which the other's peak must not see
    row = measure(Case("eager", 16384, heads=2, head_dim=16), repeats=2)
    assert ballast.numel()
    assert row.note == ""
    assert row.seconds > 0
    tables = 2 * 2 * 16384 * 64 * 4
    assert tables < row.peak_bytes < 10 * tables
    assert 0 < row.error < 1
    assert row.torch_version == torch.__version__
    assert row.device.endswith(f"{torch.get_num_threads()} threads")


def test_run_error_is_the_oracles():
    q, k, v = (x.double().numpy() for x in worker.inputs(small("blocked")))
    near = oracle.nystrom_attention(q, k, v, 16, 8**-0.5)
    exact = oracle.softmax(8**-0.5 * q @ k.swapaxes(-1, -2)) @ v
    wanted = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert worker.run(small("blocked"), 1, 1.0)["error"] == pytest.approx(wanted, rel=1e-4)
    assert worker.run(small("exact"), 1, 1.0)["error"] < 1e-6


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_run_times_what_agrees(dtype, backward):
    for method in ("eager", "blocked", "module"):
        result = worker.run(small(method, dtype=dtype, backward=backward), 1, 1.0)
        assert result["note"] == ""
        assert result["seconds"] > 0


def test_run_times_the_peer():
    pytest.importorskip("nystrom_attention")
    result = worker.run(small("nystrom-attention", backward=True), 1, 1.0)
    assert result["note"] == ""
    assert result["error"] is None


@pytest.mark.parametrize(
    ("backward", "off", "note"),
    [
        (False, lambda x: x + 0.01, "no time: the output is .* off the float64 equations"),
        (True, lambda x: 2 * x - x.detach(), "no time: the gradients are .* over 3e-04"),
        (False, lambda x: x * torch.nan, "no time: the output is nan"),
    ],
)
def test_run_does_not_time_what_is_wrong(monkeypatch, backward, off, note):
    def wrong(query, key, value, backend):
        output = nystrom_attention(query, key, value, num_landmarks=16, backend="eager")
        return output if backend == "eager" else off(output)

    monkeypatch.setattr(worker, "method", lambda case: partial(wrong, backend="wrong"))
    result = worker.run(small("blocked", backward=backward), 1, 1.0)
    assert result["seconds"] is None
    with pytest.raises(AssertionError, match=note):
        raise AssertionError(result["note"])


def test_inputs_are_the_same_for_every_method():
    for x, y in zip(worker.inputs(small("exact")), worker.inputs(small("blocked")), strict=True):
        assert torch.equal(x, y)
    (x,) = worker.inputs(small("module"))
    assert torch.equal(x.unflatten(2, (2, 8)).transpose(1, 2), worker.inputs(small("exact"))[0])


def test_sweep_leaves_out_what_would_take_too_long(monkeypatch):
    seconds = {"exact": lambda n: (n / 100) ** 2, "blocked": lambda n: n / 100}
    measured = []

    def fake(case, *, repeats, time_limit):
        measured.append((case.method, case.n, repeats, time_limit))
        return Row(case, seconds[case.method](case.n))

    monkeypatch.setattr(bench, "measure", fake)
    started, seen = [], []
    rows = sweep(
        [400, 100, 200],
        ["exact", "blocked"],
        repeats=3,
        time_limit=4.5,
        on_case=started.append,
        on_row=seen.append,
    )
    assert seen == rows
    assert started == [row.case for row in rows]
    assert [row.case.n for row in rows] == [100, 100, 200, 200, 400, 400]
    assert [row.note for row in rows] == ["", "", "", "", "skipped: would take about 16 s", ""]
    assert ("exact", 400, 3, 4.5) not in measured
    assert ("blocked", 400, 3, 4.5) in measured


def test_measure_says_when_the_peer_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert measure(small("nystrom-attention")).note.startswith("not installed: pip install")


def test_measure_says_when_a_process_hangs_or_fails(monkeypatch):
    def hang(command, **settings):
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert measure(small("exact"), time_limit=2).note == "stopped after 66 s"
    for code, stderr, note in (
        (1, "Traceback\nRuntimeError: no\n", "failed: RuntimeError: no"),
        (1, "Traceback\nNotImplementedError: It needs more.\n", "failed: It needs more"),
        (-9, "", "failed: exit status -9"),
    ):
        done = subprocess.CompletedProcess([], code, "", stderr)
        monkeypatch.setattr(subprocess, "run", lambda *args, done=done, **kwargs: done)
        assert measure(small("exact")).note == note


def test_csv_brings_every_row_back(tmp_path):
    rows = [
        Row(small("exact", backward=True), 0.5, 123, 1e-7, device="a, b", torch_version="1"),
        Row(small("blocked"), note='skipped: "x",\ny'),
    ]
    write_csv(rows, tmp_path / "rows.csv")
    assert read_csv(tmp_path / "rows.csv") == rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Case("flash", 8), "`method` must be one of 'exact', .*, got 'flash'"),
        (lambda: Case("exact", 8, dtype="int8"), "`dtype` must be one of 'float32', .*'int8'"),
        (lambda: Case("exact", 0), "`n` must be at least 1, got 0"),
        (lambda: Case("exact", 8, heads=0), "`heads` must be at least 1, got 0"),
        (lambda: sweep([], ["exact"]), r"`ns` must have at least one entry, got \[\]"),
        (lambda: sweep([8], []), r"`methods` must have at least one entry, got \[\]"),
        (lambda: measure(Case("exact", 8), repeats=0), "`repeats` must be at least 1, got 0"),
        (
            lambda: measure(Case("exact", 8), time_limit=0),
            "must be above 0 seconds and finite, got 0",
        ),
    ],
)
def test_bench_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
