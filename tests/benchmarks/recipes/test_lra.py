import csv
import json
import sys

import pytest

from benchmarks import common, publish
from benchmarks.recipes import lra, lra_data, lra_tables, runs
from nystromer.recipes.lra.attentions import ATTENTIONS
from nystromer.recipes.lra.tasks import TASKS


def row(task, attention, seed=0, **change):
    values = {
        "task": task, "attention": attention, "seed": str(seed), "test_rows": "1000",
        "accuracy": "0.4", "ms_per_step": "500", "peak_mib": "20", "schedule": "0.05",
        "steps": "250", "batch_size": "32", "train_rows": "96000", "learning_rate": "0.001",
    }  # fmt: skip
    return {**values, **change}


def test_the_plan_names_tasks_and_attentions_that_there_are():
    assert set(lra.PLAN) <= set(TASKS)
    assert set(lra.ATTENTIONS) <= set(ATTENTIONS)
    assert set(lra_tables.NAMES) == set(TASKS)


def test_run_trains_what_is_missing_and_gather_keeps_other_rows(tmp_path, monkeypatch, capfd):
    words = ["", "run", str(tmp_path / "runs"), "--quick", "--cache", str(tmp_path / "cache")]
    words += ["--tasks", "listops", "--attentions", "none"]
    monkeypatch.setattr(sys, "argv", words)
    (tmp_path / "runs").mkdir()
    with runs.locked(tmp_path / "runs" / "listops-none-0.lock") as mine:
        assert mine
        lra.main()  # another process, as far as the lock can tell
    assert not (tmp_path / "runs" / "listops-none-0").exists()
    lra.main()
    assert "lra listops --attention none" in capfd.readouterr().out
    lra.main()
    assert "lra listops" not in capfd.readouterr().out
    output = tmp_path / "lra.csv"
    old = dict.fromkeys(lra.COLUMNS, "1") | {"task": "text", "attention": "exact"}
    common.write([old], output)
    monkeypatch.setattr(
        sys, "argv", ["", "gather", str(tmp_path / "runs"), "--output", str(output)]
    )
    lra.main()
    with output.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == old
    metrics = json.loads((tmp_path / "runs" / "listops-none-0" / "metrics.json").read_text())
    assert second["test_rows"] == "4"
    assert float(second["accuracy"]) == pytest.approx(metrics["accuracy"], abs=1e-3)
    assert second["data"] == metrics["data"]


def test_the_table_shows_ours_beside_the_paper_and_the_repeat(monkeypatch):
    tasks = ("listops", "text", "imdb-same-movie", "image", "pathfinder")
    rows = [row(task, "nystrom") for task in tasks] + [row("text", "nystrom", 1, accuracy="0.6")]
    monkeypatch.setattr(lra_tables, "results", lambda name: rows)
    lines = publish.TABLES["lra"]().splitlines()
    mean = "40.0 ± 3.0"
    assert lines[2] == f"| nystrom | here | {mean} | 50.0 ± 3.1 |  |{3 * f' {mean} |'} 42.0 |"
    assert "| nystrom | paper | 37.15 | 65.52 | 79.56 |  | 41.58 | 70.94 | 58.95 |" in lines
    assert "| exact | paper | 37.10 | 65.02 | 79.35 |  | 38.20 | 74.16 | 58.77 |" in lines
    assert "| nystrom | repeat | 38.51 | 64.83 | 80.52 |  | 41.30 | 69.48 | 58.93 |" in lines
    assert "| exact | repeat | 38.37 | 61.95 | 80.69 |  | 40.57 | 65.26 | 57.37 |" in lines


def test_cost_is_compared_with_exact_attention(monkeypatch):
    rows = [row("text", "nystrom"), row("text", "exact", ms_per_step="1500", peak_mib="90")]
    monkeypatch.setattr(lra_tables, "results", lambda name: rows)
    lines = publish.TABLES["lra-cost"]().splitlines()
    assert lines[2] == "| nystrom |  | 500 ms (3.0×), 20 MiB |  |  |  |  |"
    assert lines[3] == "| exact |  | 1,500 ms (1.0×), 90 MiB |  |  |  |  |"
    budget = publish.TABLES["lra-budget"]().splitlines()
    assert budget[2:] == ["| Text | 250 | 32 | 5 % | 0.001 | 96,000 | 1,000 |"]


def test_figure_draws_a_panel_a_task(tmp_path, monkeypatch):
    rows = [row("text", "exact"), row("image", "exact")]
    monkeypatch.setattr(lra_tables, "results", lambda name: rows)
    lra_tables.figure().savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_lra_data_counts_classes_and_lengths(tmp_path, monkeypatch):
    output = tmp_path / "rows.csv"
    words = ["", "--quick", "--cache", str(tmp_path / "cache"), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    lra_data.main()
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], r["split"], r["rows"]) for r in rows[:3]] == [
        ("listops", "train", "100"), ("listops", "validation", "10"), ("listops", "test", "10"),
    ]  # fmt: skip
    assert (
        500 < int(rows[0]["shortest"]) <= int(rows[0]["median"]) <= int(rows[0]["longest"]) < 2000
    )
    assert [r["longest"] for r in rows if r["task"] == "pathfinder"] == ["1024"] * 3
