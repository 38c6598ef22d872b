"""The mechanisms of a run, for each command that trains: claim, inputs, checkpoints, no NaN."""

import functools
import json
import random
import re
import shutil
from pathlib import Path

import datasets
import pytest

from nystromer.recipes.convert import distill
from nystromer.recipes.runs.claim import LOCK, claimed
from nystromer.recipes.runs.trainer import RunTrainer

RUNS = {
    "train": "train --train-file rows.jsonl --max-length 64 --num-landmarks 4 --epochs 2 --resume",
    "pretrain": "pretrain rows.jsonl --tokenizer bytes --sequence-length 32 --num-landmarks 4 "
    "--held-out 0.3 --steps 6 --evaluations 3 --batch-size 4 --resume",
    "distill": "convert encoder --distill --text words.txt --num-landmarks 4 --steps 6",
    "lra": "lra text --data-dir . --cache cache --rows 8 --eval-rows 4 --steps 6 --batch-size 2 "
    "--looks 3 --attention none --resume",
}


def write_rows(path, seed=0):
    draw = random.Random(seed)
    rows = [
        {"text": "".join(draw.choices("ab. ", (2, 1, 1, 1), k=60)), "label": i % 2}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def small(run, encoder, text, tmp_path, monkeypatch):
    """Runs one of the commands, in a folder with all that they read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    few = functools.partial(
        distill.Settings, eval_every=2, batch_size=2, calibration_passages=2, learning_rate=1e-4
    )
    monkeypatch.setattr(distill, "Settings", few)
    for name in ("rows.jsonl", "train.jsonl", "test.jsonl"):
        write_rows(Path(name))
    shutil.copytree(encoder, "encoder")
    shutil.copy(text, "words.txt")
    return lambda name, more="": run(*RUNS[name].split(), "--output", "out", *more.split())


@pytest.mark.parametrize("name", RUNS)
def test_a_second_run_in_the_folder_is_refused_by_name(small, name):
    with claimed(Path("out")):
        code, _, error = small(name)
        assert (code, "`--output` out belongs to a run that is still going on" in error) == (
            2,
            True,
        )
        assert [x.name for x in Path("out").iterdir()] == [LOCK]
    assert not Path("out").exists()


def swapped_labels(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**x, "label": 1 - x["label"]}) + "\n" for x in rows))


def half(path):
    whole = path.read_text()
    path.write_text(
        whole[: whole.index("\n", len(whole) // 2) + 1] if "\n" in whole else whole[:9000]
    )


CHANGES = {
    "train": [
        (swapped_labels, "rows.jsonl", "got the train rows = "),
        (functools.partial(write_rows, seed=1), "rows.jsonl", "got the train rows = "),
    ],
    "pretrain": [(half, "rows.jsonl", "got the file rows.jsonl = ")],
    "distill": [
        (half, "words.txt", "got the passages of --text = "),
        (lambda path: path.write_text("{}"), "encoder/more.json", "got the model encoder = "),
    ],
    "lra": [(swapped_labels, "train.jsonl", "got the data of text = ")],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_with_the_inputs_it_began_with(small, name):
    assert small(name)[0] == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    for change, file, message in CHANGES[name]:
        path = Path(file)
        content = path.read_text() if path.exists() else None
        change(path)
        code, _, error = small(name)
        assert code == 2
        assert message in error
        assert "bring that back, or name a new --output." in error
        path.unlink() if content is None else path.write_text(content)
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    code, _, error = small(name)  # with the old ones there is nothing left to do
    assert code == (2 if name == "distill" else 0)
    assert name != "distill" or "holds a finished run" in error


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_that_lacks_a_file_is_refused_by_name(small, name, monkeypatch):
    step = RunTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", interrupted)
        assert small(name)[0] == 130
    found = sorted(Path("out").glob("checkpoint-*"))
    assert found
    for path in found:
        (path / "scheduler.pt").unlink()
    before = sorted(Path("out").rglob("*"))
    code, _, error = small(name)
    assert code == 2
    message = rf"No checkpoint in out is whole \(.*{found[-1].name}: scheduler.pt is missing.*\)"
    assert re.search(message, error)
    assert sorted(Path("out").rglob("*")) == before


@pytest.mark.parametrize("name", RUNS)
def test_what_is_not_finite_is_exit_code_1(small, name, monkeypatch):
    if name == "distill":
        monkeypatch.setattr(
            distill, "Settings", functools.partial(distill.Settings, learning_rate=1e30)
        )
    code, _, error = small(name, "" if name == "distill" else "--learning-rate 1e30")
    assert code == 1
    assert re.search(r"Stopped at step \d+: .*(loss is|not finite).*begin anew", error)
    assert not Path("out/metrics.json").exists()
    assert not Path("out/model.safetensors").exists()
