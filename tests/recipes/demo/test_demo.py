from __future__ import annotations

import json
import re

import pytest

from nystromer.recipes.demo import run_demo
from nystromer.recipes.demo.settings import Settings

TINY = Settings(
    scaling_ns=(64,),
    scaling_repeats=1,
    length=128,
    num_packages=3,
    max_windows=8,
    batch_size=4,
    width=16,
    head_dim=8,
    num_landmarks=16,
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "result"
    assert run_demo(output, settings=TINY) == output / "report.html"
    return output


def test_run_demo_leaves_nothing_but_its_result(output):
    names = {"report.html", "metrics.json", "scaling.png", "accuracy.png", "rows.png"}
    names.add("manifest.json")
    assert {path.name for path in output.iterdir()} == names


def test_run_demo_report_needs_nothing_else(output):
    report = (output / "report.html").read_text(encoding="utf-8")
    loads = re.findall(r"(?:src|href)=[\"']?([^\"'>\s]{1,30})|url\(|@import", report)
    assert loads == ["data:image/png;base64,iVBORw0K"] * 3
    assert "{{" not in report


def test_run_demo_metrics_hold_every_number(output):
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert [row["case"]["n"] for row in metrics["scaling"]] == [64, 64]
    assert metrics["twins"].keys() == {"exact", "nystrom"}
    for twin in metrics["twins"].values():
        assert 0 <= twin["accuracy"] <= 1
        assert twin["peak_bytes"] > 0
    assert not set(metrics["task"]["train_files"]) & set(metrics["task"]["held_out_files"])
    assert len(metrics["sample"]["nystrom"]) == TINY.length


def test_run_demo_refuses_a_folder_of_other_things(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"`--output` must be a new folder.*name another"):
        run_demo(tmp_path, settings=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class AcceptedError(Exception):
    pass


def test_run_demo_replaces_a_former_result(output, monkeypatch):
    def accepted(**_):
        raise AcceptedError

    monkeypatch.setattr("nystromer.recipes.demo.stdlib_task", accepted)
    with pytest.raises(AcceptedError):
        run_demo(output, settings=TINY)
