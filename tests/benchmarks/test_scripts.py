"""Every script from its command line, at tiny sizes."""

import csv
import subprocess
import sys

import pytest

from benchmarks.attention import everyone, growth
from benchmarks.attention.others import OTHERS
from nystromer.bench import Row, read_csv


def run(script, output, *options):
    command = [sys.executable, "-m", "benchmarks", script, "--quick", "--output", output, *options]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def test_everyone_measures_everyone(tmp_path):
    rows = run("attention.everyone", tmp_path / "everyone.csv")
    assert len(rows) == 2 * len(OTHERS)
    for row in rows:
        assert row["version"]
        if "disagrees" in row["note"]:  # torch's convolution does, on some CPUs
            assert float(row["other_off"]) > 1e-2
            assert not row["ratio"]
        elif row["dtype"] == "bfloat16" and row["against"] in ("nystrom-attention", "transformers"):
            assert row["note"].startswith("fails: RuntimeError: expected scalar type Float")
        else:
            assert row["note"] == ""
            assert float(row["ratio"]) > 0
            assert float(row["other_mib"]) >= 0
            assert float(row["ours_off"]) < 6e-2
    errors = {row["against"]: row["other_error"] for row in rows if row["dtype"] == "float32"}
    assert float(errors["exact"]) < 1e-5 < float(errors["performer"])
    assert errors["linformer"] == errors["plain PyTorch"] == ""


def test_everyone_keeps_the_rows_of_others(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(case):
        measured.append(case.against)
        return {"ratio": len(measured), "other_ms": 1.0, "ours_ms": 1.0, "note": ""}

    monkeypatch.setattr(everyone, "measure", measure)
    output = str(tmp_path / "everyone.csv")
    for options in (["--only", "linformer"], [], ["--only", "exact", "--fresh"]):
        monkeypatch.setattr("sys.argv", ["", "--quick", "--output", output, *options])
        everyone.main()
    others = [name for name in OTHERS if name != "linformer"]
    assert measured == ["linformer"] * 2 + others * 2 + ["exact"] * 2
    assert capsys.readouterr().out.splitlines()[-1].endswith("x (1 / 1 ms)")


@pytest.mark.parametrize("options", [["--only", "flare"], ["--only", "blocked", "--busy"]])
def test_cpu_checks_and_measures(tmp_path, options):
    (row,) = run("attention.cpu", tmp_path / "cpu.csv", *options)
    assert row["against"] == options[1]
    assert float(row["error"]) < 1e-5
    assert min(float(row[name]) for name in ("other_ms", "ours_ms", "ratio")) > 0


def test_peak_counts_what_the_library_multiplies(tmp_path):
    """A head of 4 n 64^2 + 33 n 64 multiply-adds for tokens; 24 products of 64^3 for the rest."""
    rows = run("attention.peak", tmp_path / "peak.csv")
    assert [(row["n"], row["cores"]) for row in rows] == [("256", "1"), ("256", "2")]
    counted = 8 * (256 * 64 * (4 * 64 + 33) + (1 + 6 + 4 + 13) * 64**3)
    for row in rows:
        rate = 2e-6 * counted / float(row["ms"])
        assert float(row["gflops"]) == pytest.approx(rate, rel=2e-3)
        assert float(row["share"]) == pytest.approx(rate / float(row["mm_gflops"]), rel=2e-3)


def test_large_maps_measures_every_method(tmp_path):
    rows = run("slides.large_maps", tmp_path / "large_maps.csv")
    assert [row["method"] for row in rows] == ["single", "gradient", "attention", "rollout"]
    assert all(float(row["cpu_seconds"]) > 0 and float(row["peak_mib"]) > 50 for row in rows)


def test_table1_runs(tmp_path):
    (row,) = run("attention.table1", tmp_path / "table1.csv")
    assert (row["n"], row["num_landmarks"]) == ("256", "32")
    assert float(row["naive_mib"]) > float(row["sdpa_mib"])
    assert float(row["naive_ratio"]) > 0


def test_growth_keeps_what_it_has_measured_when_killed(tmp_path, monkeypatch):
    measured = []

    def measure(case, **options):
        if len(measured) == 43:
            raise InterruptedError
        measured.append(case)
        return Row(case, 1e-9, len(measured))

    monkeypatch.setattr("nystromer.bench.measure", measure)
    monkeypatch.setattr("sys.argv", ["", "--output", str(tmp_path / "growth.csv")])
    with pytest.raises(InterruptedError):
        growth.main()
    assert [row.case for row in read_csv(tmp_path / "growth.csv")] == measured
    first = list(measured)
    measured.clear()
    growth.main()
    assert len({*first, *measured}) == len(first) + len(measured) == 80
    cases = [row.case for row in read_csv(tmp_path / "growth.csv")]
    assert cases == first + measured
    assert {(case.method, case.backward) for case in cases} == {
        (method, backward) for method in growth.METHODS for backward in (False, True)
    }
    assert max(case.n for case in cases) == 262_144


def test_clustered_speed_checks_and_measures(tmp_path):
    rows = run("clustered.speed", tmp_path / "clustered_speed.csv")
    assert [row["direction"] for row in rows] == ["forward", "forward + backward"]
    for row in rows:
        assert 0 < float(row["error"]) < 1e-5
        assert (
            min(float(row[name]) for name in ("to_exact", "to_nystrom", "to_blocked", "ours_ms"))
            > 0
        )


def test_clustered_tradeoff_measures_error_and_time(tmp_path):
    nystrom, clustered = run("clustered.tradeoff", tmp_path / "clustered_tradeoff.csv")
    assert float(nystrom["cosine"]) < float(clustered["cosine"]) < 1
    assert float(clustered["to_exact"]) > 0


def test_scale_exchange_counts_the_same_bytes_at_every_length(tmp_path):
    rows = run("scale.exchange", tmp_path / "rows.csv")
    heads, dim, m, edge = 8, 64, 64, 16
    told = 8 * (1 + 16) + 8 * 2  # sizes and settings, then the lengths of one sequence
    numbers = m * (3 * dim + 2) + edge * dim + m * 3 * dim + edge * dim
    assert [int(row["bytes"]) for row in rows] == [told + 4 * heads * numbers] * 2
    assert all(float(row["error"]) < 1e-5 for row in rows)


def test_scale_a_million_bytes_are_read_and_learnt_from(tmp_path):
    rows = run("scale.million", tmp_path / "rows.csv")
    assert [row["job"] for row in rows] == ["encode", "train"]
    assert all(float(row["peak_gib"]) > 0.1 for row in rows)
