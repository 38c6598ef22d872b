"""A killed process, and several of them: each a real one, in seconds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nystromer.hf import NystromformerForPreTraining
from nystromer.recipes.inputs.presets import preset
from nystromer.recipes.runs import trainer
from small_pretraining import small_pretraining

BINARIES = Path(sys.executable).parent
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_landmarks": 4, "hidden_dropout_prob": 0.0}
TORCHRUN = [BINARIES / "torchrun", "--nproc-per-node", 2, "--rdzv-endpoint", "localhost:0",
            "--rdzv-backend", "c10d"]  # fmt: skip
LAUNCH = [BINARIES / "accelerate", "launch", "--num_processes", 2, "--num_machines", 1,
          "--mixed_precision", "no", "--dynamo_backend", "no",
          "--main_process_port", 0]  # fmt: skip
FSDP = ["--use_fsdp", "--fsdp_version", 2, "--fsdp_state_dict_type", "FULL_STATE_DICT",
        "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
        "--fsdp_transformer_layer_cls_to_wrap", "NystromformerLayer"]  # fmt: skip


@pytest.fixture
def start(letters, tmp_path, monkeypatch):
    """A model to go on from. Without dropout: its masks are each process's own."""
    monkeypatch.setattr(trainer, "bfloat16_is_fast", lambda: False)
    model = NystromformerForPreTraining(preset("tiny", letters, max_length=32, **SIZES))
    model.save_pretrained(tmp_path / "start")
    letters.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def program(before, *words, **environment):
    """Runs small_pretraining.py, started by `before`."""
    words = [*before, "tests/small_pretraining.py", *words]
    return subprocess.run(
        [str(x) for x in words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def losses(folder):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    names = ("loss", "eval_word_loss", "eval_order_loss", "eval_word_accuracy")
    return [x[name] for x in log for name in names if name in x]


@pytest.mark.parametrize(
    ("launcher", "environment"),
    [(TORCHRUN, {}), ([*LAUNCH, *FSDP], {"SHARD_ON_CPUS": "1"})],
    ids=["torchrun, DDP", "accelerate launch, FSDP"],
)
def test_two_processes_give_the_losses_of_one(start, file, tmp_path, cache, launcher, environment):
    one, two = tmp_path / "one", tmp_path / "two"
    small_pretraining(file, start, one, steps=4)
    done = program(launcher, file, start, two, 4, HF_DATASETS_CACHE=str(cache), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    whole, parts = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    name = "nystromformer.embeddings.word_embeddings.weight"
    assert float((whole[name] - parts[name]).abs().max()) < 1e-4


@pytest.fixture
def together(monkeypatch):
    """Rows one at a time, as processes that share them take them."""
    monkeypatch.setenv("BATCH_SIZE", "2")
    monkeypatch.setenv("DEVICE_BATCH", "1")
    return {"SEQUENCE_PARALLEL": "2"}


@pytest.mark.parametrize(
    ("launcher", "steps", "environment"),
    [
        (TORCHRUN, 50, {"EVALUATIONS": "1"}),
        ([*TORCHRUN, "--nproc-per-node", 4], 4, {}),
        ([*LAUNCH, *FSDP], 4, {"SHARD_ON_CPUS": "1"}),
    ],
    ids=["alone", "beside DDP", "FSDP"],
)
def test_a_row_in_two_processes_gives_the_losses_of_one(
    start, file, tmp_path, cache, together, launcher, steps, environment, monkeypatch
):
    one, two = tmp_path / "one", tmp_path / "two"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    small_pretraining(file, start, one, steps=steps)
    options = {"HF_DATASETS_CACHE": str(cache), **together, **environment}
    done = program(launcher, file, start, two, steps, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_a_run_goes_on_with_another_number_of_processes_a_row(
    start, file, tmp_path, cache, together
):
    one, other = tmp_path / "one", tmp_path / "other"
    small_pretraining(file, start, one, steps=16)
    done = program(TORCHRUN, file, start, other, 16, 9, HF_DATASETS_CACHE=str(cache), **together)
    assert done.returncode != 0
    assert (other / "checkpoint-8").is_dir()
    small_pretraining(file, start, other, steps=16, resume=True)
    assert losses(other) == pytest.approx(losses(one), rel=1e-4)


def test_killed_and_resumed_is_as_never_killed(start, file, tmp_path, cache):
    """In the second epoch, between two checkpoints."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    small_pretraining(file, start, whole, steps=40)
    done = program([sys.executable], file, start, killed, 40, 26, HF_DATASETS_CACHE=str(cache))
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    metrics = small_pretraining(file, start, killed, steps=40, resume=True)
    assert metrics["epoch"] > 1.5
    assert losses(killed) == losses(whole)


def test_fsdp_that_would_be_left_out_is_refused(start, file, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="accelerate shards nothing on NO; leave FSDP out"):
        small_pretraining(file, start, tmp_path / "out", steps=4)
