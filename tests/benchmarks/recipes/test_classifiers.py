import json
import sys

import pytest

from benchmarks import common
from benchmarks.recipes import classifiers as recipes
from benchmarks.recipes import tables
from nystromer.cli import main


@pytest.mark.parametrize("name", recipes.EXPERIMENTS)
def test_experiments_are_words_of_nystromer_train(name, tmp_path, monkeypatch, capsys):
    """Without data it stops at the data, not at an option that it does not know."""
    words = recipes.EXPERIMENTS[name].words.format(data=tmp_path / "none", model=tmp_path)
    argv = ["", "train", *words.split(), "--attention", "exact", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert str(tmp_path / "none") in capsys.readouterr().err


def run_folder(folder, accuracy):
    folder.mkdir(parents=True)
    scores = {"accuracy": accuracy, "f1": 0.5, "loss": 1.0}
    metrics = {"rows": {"train": 4904, "dev": 613, "test": 613}, "dev": {}, "test": scores}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    record = {"parameters": 9, "device": "CPU", "versions": {"torch": "2"}}
    (folder / "run.json").write_text(json.dumps(record))


def gather(folder, monkeypatch):
    words = ["", "gather", str(folder), "--output", str(folder / "rows.csv")]
    monkeypatch.setattr(sys, "argv", words)
    recipes.main()
    return common.read(folder / "rows.csv")


def test_gather_reads_finished_runs_and_keeps_other_rows(tmp_path, monkeypatch):
    run_folder(tmp_path / "gene-families-nystrom-0", 0.75)
    (tmp_path / "promoters-exact-1").mkdir()  # not finished
    run_folder(tmp_path / "SST-2-exact-0", 0.5)
    old = recipes.row_of(tmp_path / "SST-2-exact-0") | {"seed": "1"}
    common.write([old | {"accuracy": "0.1"}, old | {"seed": "0"}], tmp_path / "rows.csv")
    first, again, row = gather(tmp_path, monkeypatch)
    assert (first["seed"], first["accuracy"]) == ("1", "0.1")
    assert (again["seed"], again["accuracy"]) == ("0", "0.5")
    assert (row["experiment"], row["attention"], row["seed"]) == ("gene families", "nystrom", "0")
    assert (row["split"], row["rows"], row["accuracy"]) == ("test", "613", "0.75")


def test_the_table_compares_the_twins(tmp_path, monkeypatch):
    for seed, accuracy in enumerate((0.7, 0.8)):
        run_folder(tmp_path / f"promoters-nystrom-{seed}", accuracy)
    run_folder(tmp_path / "promoters-exact-0", 0.74)
    rows = gather(tmp_path, monkeypatch)
    monkeypatch.setattr(tables, "results", lambda name: rows)
    line = tables.recipes_table().splitlines()[2]
    cells = "4,904 | 613 (test) | 75.0 (70.0–80.0) | 74.0 | +1.0"
    assert line == f"| promoters | accuracy | {cells} |"


def test_run_leaves_out_what_has_no_model(tmp_path, monkeypatch, capsys):
    argv = ["", "run", str(tmp_path / "runs"), "--data-dir", str(tmp_path), "--only", "IMDB"]
    monkeypatch.setattr(sys, "argv", [*argv, "--model", str(tmp_path / "none")])
    recipes.main()
    assert capsys.readouterr().out.count("no pretrained model in") == 2
    assert not list((tmp_path / "runs").glob("IMDB*"))
