import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nystromer.recipes.shared.run import Run
from nystromer.recipes.shared.trainer import PARTIAL, EpochSampler
from small_run import SETTINGS, small_run, small_trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    small_run(folder)
    return folder


def program(folder, how):
    words = [sys.executable, "tests/small_run.py", str(folder), how]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_run_leaves_a_model_and_says_what_was_done(whole):
    record = json.loads((whole / "run.json").read_text())
    assert record["settings"] == {"epochs": 2, "file": "a.txt"}
    assert torch.__version__.startswith(record["versions"]["torch"])  # it also names the build
    assert record["command"]
    assert set(json.loads((whole / "metrics.json").read_text())) == {"eval_loss", "eval_accuracy"}
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == list(range(2, 21, 2))
    assert [row["step"] for row in log if "eval_loss" in row] == [5, 10, 15, 20, 20]
    assert AutoModelForSequenceClassification.from_pretrained(whole).config.hidden_size == 16
    assert AutoTokenizer.from_pretrained(whole)("a").input_ids == [257, 97, 258]
    left = {path.name for path in whole.iterdir()}
    assert not any(name.startswith("checkpoint") or name.endswith((".bin", ".pt")) for name in left)


@pytest.mark.parametrize("how", ["step", "checkpoint"])
def test_a_killed_run_goes_on_to_the_same_result(whole, tmp_path, how):
    """Killed in the middle of an epoch, and in the middle of writing a checkpoint."""
    folder = tmp_path / "run"
    assert program(folder, how).returncode == -signal.SIGKILL
    assert (folder / PARTIAL).exists() == (how == "checkpoint")
    assert not (folder / "metrics.json").exists()
    small_run(folder, resume=True)
    assert not (folder / PARTIAL).exists()
    assert (folder / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    weights = [load_file(path / "model.safetensors") for path in (folder, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_full_disk_is_one_sentence_and_keeps_the_run(whole, tmp_path):
    done = program(tmp_path / "run", "disk")
    assert done.returncode == 1
    assert re.search(
        r"ValueError: .*run cannot be written to: .*; make room, then give the same command with "
        r"--resume\.$",
        done.stderr,
        re.MULTILINE,
    )
    small_run(tmp_path / "run", resume=True)
    metrics = [(path / "metrics.json").read_text() for path in (tmp_path / "run", whole)]
    assert metrics[0] == metrics[1]


def test_a_run_that_is_finished_says_its_metrics(whole):
    found = Run(whole, SETTINGS, resume=True).finished()
    assert found == json.loads((whole / "metrics.json").read_text())
    assert Run(whole / "new", SETTINGS).finished() is None


def test_resume_begins_a_run_in_an_empty_folder(tmp_path):
    assert Run(tmp_path, SETTINGS, resume=True).finished() is None
    assert Run(tmp_path / "new", SETTINGS, resume=True).finished() is None


@pytest.mark.parametrize(
    ("settings", "resume", "message"),
    [
        (SETTINGS, False, r"must be a new folder, got .*, which holds a run; add --resume"),
        (
            {**SETTINGS, "epochs": 3},
            True,
            r"`--resume` goes on with the same settings, got epochs = 3 where the run in .* has 2",
        ),
        ({**SETTINGS, "new": 1}, True, "got new = 1 where the run in .* has None"),
        ({"epochs": 2}, True, "got file = None where the run in .* has 'a.txt'"),
    ],
)
def test_a_folder_with_another_run_is_refused(whole, settings, resume, message):
    before = sorted(whole.iterdir())
    with pytest.raises(ValueError, match=message):
        Run(whole, settings, resume)
    assert sorted(whole.iterdir()) == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_something_else_is_refused(tmp_path, resume):
    (tmp_path / "mine.txt").touch()
    for folder in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ValueError, match=r"`--output` must be a new folder.*something else\."):
            Run(folder, SETTINGS, resume)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json is not that of a run .*; name a new --output"):
        Run(tmp_path, SETTINGS, resume)


def test_two_runs_cannot_claim_one_folder(tmp_path):
    runs = [Run(tmp_path / "run", SETTINGS) for _ in range(2)]
    trainer = small_trainer(tmp_path / "run", max_steps=1)
    runs[0]._claim(trainer)
    with pytest.raises(FileExistsError):
        runs[1]._claim(trainer)


def test_the_best_checkpoint_is_known_after_a_resume(tmp_path):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_steps": 5}
    trainer = small_trainer(tmp_path / "run", **options)
    Run(tmp_path / "run", SETTINGS).train(trainer)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run"
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


def test_the_order_depends_on_seed_and_epoch_and_batches_hold_rows_of_like_length(tmp_path):
    trainer = small_trainer(tmp_path)
    lengths = [1, 1, 2, 9, 9, 8, 8, 9, 1] * 4
    orders = {}
    for seed, epoch in ((0, None), (0, 0.0), (0, 0.4), (0, 1.0), (1, 0.0)):
        trainer.args.seed, trainer.state.epoch = seed, epoch
        orders[seed, epoch] = list(EpochSampler(trainer, len(lengths), lengths))
        assert sorted(orders[seed, epoch]) == list(range(len(lengths)))
    assert orders[0, None] == orders[0, 0.0] == orders[0, 0.4]
    assert len({tuple(order) for order in orders.values()}) == 3
    for order in orders.values():
        spread = [{lengths[i] > 4 for i in order[j : j + 4]} for j in range(0, 36, 4)]
        assert sum(len(kinds) == 1 for kinds in spread) >= 8
