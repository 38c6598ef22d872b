import json
import sys

import pytest

from benchmarks.recipes import classifiers as recipes
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


def test_gather_reads_finished_runs_and_keeps_other_rows(tmp_path):
    run_folder(tmp_path / "gene-families-nystrom-0", 0.75)
    (tmp_path / "promoters-exact-1").mkdir()  # not finished
    old = {"experiment": "SST-2", "attention": "exact", "seed": "0"}
    first, row = recipes.gather(tmp_path, [old])
    assert first == old
    assert (row["experiment"], row["attention"], row["seed"]) == ("gene families", "nystrom", "0")
    assert (row["split"], row["rows"], row["accuracy"]) == ("test", "613", "0.75")


def test_lines_compare_the_twins(tmp_path):
    for seed, accuracy in enumerate((0.7, 0.8)):
        run_folder(tmp_path / f"promoters-nystrom-{seed}", accuracy)
    run_folder(tmp_path / "promoters-exact-0", 0.74)
    (line,) = recipes.lines(recipes.gather(tmp_path, []))
    assert line == [
        *("promoters", "accuracy", "4,904", "613 (test)", "75.0 (70.0–80.0)", "74.0", "+1.0")
    ]


def test_run_leaves_out_what_has_no_model(tmp_path, monkeypatch, capsys):
    argv = ["", "run", str(tmp_path / "runs"), "--data-dir", str(tmp_path), "--only", "IMDB"]
    monkeypatch.setattr(sys, "argv", [*argv, "--model", str(tmp_path / "none")])
    recipes.main()
    assert capsys.readouterr().out.count("no pretrained model in") == 2
    assert not list((tmp_path / "runs").glob("IMDB*"))
