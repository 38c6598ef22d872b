import json
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from nystromer.recipes.files.outputs import beside
from nystromer.recipes.runs.checkpoints import PARTIAL
from nystromer.recipes.runs.claim import LOCK, claimed
from nystromer.recipes.runs.order import EpochSampler
from nystromer.recipes.runs.run import Run, open_run
from small_run import INPUTS, SETTINGS, small_run, small_trainer


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
    assert record["inputs"] == INPUTS
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
    assert "run.lock" not in left


@pytest.mark.parametrize("how", ["step", "checkpoint"])
def test_a_killed_run_goes_on_to_the_same_result(whole, tmp_path, how):
    """Killed in the middle of an epoch, and in the middle of writing a checkpoint."""
    folder = tmp_path / "run"
    assert program(folder, how).returncode == -signal.SIGKILL
    assert (folder / PARTIAL).exists() == (how == "checkpoint")
    assert not (folder / "metrics.json").exists()
    small_run(folder, resume=True)
    assert not (folder / PARTIAL).exists()
    for name in ("metrics.json", "log.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    weights = [load_file(path / "model.safetensors") for path in (folder, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize("max_steps", [14, 20])
def test_a_run_that_stopped_after_its_last_step_takes_no_other(tmp_path, monkeypatch, max_steps):
    def interrupted(self, trainer, metrics):
        raise KeyboardInterrupt

    small_run(tmp_path / "whole", max_steps=max_steps)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small_run(tmp_path / "run", max_steps=max_steps)
    small_run(tmp_path / "run", max_steps=max_steps, resume=True)
    for name in ("metrics.json", "log.jsonl", "model.safetensors"):
        contents = [(tmp_path / folder / name).read_bytes() for folder in ("run", "whole")]
        assert contents[0] == contents[1]


def test_a_full_disk_is_one_sentence_and_keeps_the_run(whole, tmp_path):
    done = program(tmp_path / "run", "disk")
    assert done.returncode == 1
    assert re.search(
        r"ValueError: `--output` .*run cannot be written to: .*File too large.*\.$",
        done.stderr,
        re.MULTILINE,
    )
    small_run(tmp_path / "run", resume=True)
    metrics = [(path / "metrics.json").read_text() for path in (tmp_path / "run", whole)]
    assert metrics[0] == metrics[1]


def test_a_run_that_is_finished_says_its_metrics_and_drops_what_a_kill_left(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "checkpoint-20").mkdir()
    (folder / "checkpoint-20" / "optimizer.pt").touch()
    assert small_run(folder, resume=True) == json.loads((whole / "metrics.json").read_text())
    assert sorted(x.name for x in folder.iterdir()) == sorted(x.name for x in whole.iterdir())


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_does_not_begin_leaves_nothing(tmp_path, resume):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "folder"):
        with open_run(folder, SETTINGS, resume) as run:
            assert run.begin(INPUTS) is None
    assert [x.name for x in tmp_path.rglob("*")] == ["empty"]


def test_a_training_that_is_refused_before_a_checkpoint_leaves_nothing(tmp_path):
    class Refuses(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ValueError("These rows will not do.")

    with pytest.raises(ValueError, match="will not do"):
        small_run(tmp_path / "run", callbacks=[Refuses()])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "inputs", "resume", "message"),
    [
        (SETTINGS, INPUTS, False, r"must be a new folder, got .*, which holds a run; add --resume"),
        (
            {**SETTINGS, "epochs": 3},
            INPUTS,
            True,
            r"the same settings and inputs, got epochs = 3 where the run in .* has 2; bring that",
        ),
        ({**SETTINGS, "new": 1}, INPUTS, True, "got new = 1 where the run in .* has None"),
        ({"epochs": 2}, INPUTS, True, "got file = None where the run in .* has 'a.txt'"),
        (SETTINGS, {"the letters": "5"}, True, "got the letters = '5' where the run .* has '1234'"),
    ],
)
def test_a_folder_with_another_run_is_refused(whole, settings, inputs, resume, message):
    before = sorted(whole.iterdir())
    with pytest.raises(ValueError, match=message), open_run(whole, settings, resume) as run:
        run.begin(inputs)
    assert sorted(whole.iterdir()) == before


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["mine.txt", "run.lock"])
def test_a_folder_with_something_else_is_refused(tmp_path, resume, name):
    (tmp_path / name).write_text("mine")
    for folder in (tmp_path, tmp_path / name):
        message = r"`--output` must be a new folder.*something else\."
        with pytest.raises(ValueError, match=message), open_run(folder, SETTINGS, resume):
            pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_record_is_named(whole, tmp_path, name, content):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} is not that of a run, or damaged"):
        small_run(folder, resume=True)


def test_a_run_begins_where_another_was_killed_as_it_began(tmp_path):
    (tmp_path / LOCK).touch()
    beside(tmp_path / "run.json").write_text("{")
    with open_run(tmp_path, SETTINGS) as run:
        assert run.begin(INPUTS) is None
        assert [x.name for x in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with (
        claimed(folder),
        pytest.raises(ValueError, match=r"belongs to a run that is still going on; wait for it"),
        open_run(folder, SETTINGS, True),
    ):
        pass
    with open_run(folder, SETTINGS), claimed(tmp_path / "other"):
        pass
    assert list(tmp_path.iterdir()) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def foreign(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("scheduler.pt", Path.unlink, "scheduler.pt is missing"),
        ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
        ("optimizer.pt", cut, "optimizer.pt has .* bytes, not"),
        ("model.safetensors", foreign, "model.safetensors holds something else"),
        ("trainer_state.json", cut, "trainer_state.json has"),
        ("manifest.json", cut, "it has no whole manifest.json"),
        ("manifest.json", Path.unlink, "it has no whole manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_aloud_or_refused(
    whole, stopped, tmp_path, capsys, name, damage, message
):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    assert sorted(x.name for x in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    damage(folder / "checkpoint-12" / name)
    shutil.copytree(folder, tmp_path / "other")
    small_run(folder, resume=True)
    said = capsys.readouterr().err
    assert re.search(rf"checkpoint-12 is damaged \({message}.*\): going on from checkpoint-8", said)
    assert (folder / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert (folder / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    damage(tmp_path / "other" / "checkpoint-8" / name)
    with pytest.raises(ValueError, match=rf"No checkpoint in .* is whole .*{message}.*; bring"):
        small_run(tmp_path / "other", resume=True)


def test_a_checkpoint_of_another_run_is_none_of_this(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    record = json.loads((stopped / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "started": "later"}))
    with pytest.raises(ValueError, match=r"checkpoint-12: its manifest.json is that of another"):
        small_run(tmp_path / "run", resume=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed at step 14."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert program(folder, "step").returncode == -signal.SIGKILL
    return folder


@pytest.mark.parametrize(("step", "kept"), [(2, False), (10, True)])
@pytest.mark.parametrize("what", ["loss", "weights"])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, step, kept, what):
    class Spoils(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == step:
                name = "loss" if what == "loss" else "classifier"
                if name == "loss":
                    model.nystromformer.embeddings.LayerNorm.weight.data.fill_(math.inf)
                else:  # which no batch sees before the next checkpoint
                    model.nystromformer.embeddings.position_embeddings.weight.data[-1] = math.nan

    folder = tmp_path / "run"
    message = r"Stopped at step \d+: .*(loss is|not finite)"
    with pytest.raises(FloatingPointError, match=message):
        small_run(folder, callbacks=[Spoils()])
    assert (folder / "checkpoint-8").exists() == kept
    assert not (folder / "metrics.json").exists()


def test_the_best_checkpoint_is_known_after_a_resume(tmp_path):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_steps": 5}
    with open_run(tmp_path / "run", SETTINGS) as run:
        trainer = small_trainer(tmp_path / "run", **options)
        run.train(trainer)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run"
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    (tmp_path / "run").rename(tmp_path / "moved")  # where it is found again
    with open_run(tmp_path / "moved", SETTINGS, True) as run:
        trainer = small_trainer(tmp_path / "moved", **options)
        run.train(trainer)
    assert Path(trainer.state.best_model_checkpoint).parent == tmp_path / "moved"
    shutil.rmtree(trainer.state.best_model_checkpoint)
    with pytest.raises(ValueError, match=r"The best checkpoint .* is damaged: it has no whole"):
        trainer._load_best_model()


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
