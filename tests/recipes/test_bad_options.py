"""Bad options and outputs that are taken, against every command that writes."""

import os
import shutil
from pathlib import Path

import pytest

from bad_input import GOOD, WIDE, WRITES

OPTIONS = {
    "train --train-file good.jsonl --epochs 1000000000": "`epochs` must be at most 100,000, got",
    "train --train-file good.jsonl --learning-rate inf": (
        "`--learning-rate` must be a finite number"
    ),
    "train --train-file good.jsonl --token-dropout nan": (
        "`--token-dropout` must be a finite number"
    ),
    "train --train-file good.jsonl --data-dir .": (
        "`--data-dir` is of no use beside a --train-file"
    ),
    "train sst2 --data-dir . --eval-file a": "`--eval-file` is of no use beside the TASK sst2",
    "train --train-file good.jsonl --max-length 1000000000": (
        "1,000,000,000 positions take .* GiB"
    ),
    "pretrain good.jsonl --tokenizer bytes --sequence-length 1000000000 --output out": (
        "positions take .* GiB"
    ),
    "pretrain good.jsonl --learning-rate nan --output out": (
        "`--learning-rate` must be a finite number"
    ),
    "pretrain good.jsonl --held-out inf --output out": "`--held-out` must be a finite number",
    "pretrain good.jsonl --split test --output out": (
        "`--config` and `--split` are of a --dataset"
    ),
    "calibrate {encoder} --text good.jsonl --output p.json --max-keys nan": (
        "`--max-keys` must be a f"
    ),
    "calibrate {encoder} --text good.jsonl --output p.json --max-time nan": (
        "`--max-time` must be a f"
    ),
    "calibrate {encoder} --text good.jsonl --output p.json --max-error nan": (
        "`--max-error` must be"
    ),
    "bench --time-limit nan": "`--time-limit` must be a finite number, got nan",
    "bench --time-limit inf": "`--time-limit` must be a finite number, got inf",
    "bench --time-limit 0": "`time_limit` must be above 0",
    "lra listops --output out --batch-size 0": "`--batch-size` must be at least 1, got 0",
    "lra listops --output out --learning-rate 0": "`learning_rate` must be above 0 and finite",
    "lra listops --output out --fraction nan": "`--fraction` must be a finite number",
    "lra-data listops --processes 0": "`--processes` must be at least 1, got 0",
    "predict {classifier} good.jsonl --batch-size 0 --output a.csv": (
        "`batch_size` must be at least"
    ),
    "convert {encoder} --output out --steps 5": "`--steps` is for a training, got it without",
    "convert {encoder} --output out --num-heads 5": "`--num-heads` is for a .model file",
    "convert {encoder} --output out --distill --text good.jsonl --steps 0": (
        "`steps` must be at least"
    ),
}


@pytest.mark.parametrize("command", OPTIONS)
def test_a_bad_option_is_named(refused, command):
    refused(command, OPTIONS[command])


def taken_by_a_file(path):
    path.write_text("mine")


def taken_by_a_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def taken_by_a_link(path):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    path.symlink_to(Path("mine").absolute())


def taken_by_a_broken_link(path):
    path.symlink_to("nothing")


TAKEN = (taken_by_a_file, taken_by_a_folder, taken_by_a_link, taken_by_a_broken_link)


@pytest.mark.parametrize("command", WRITES)
def test_an_output_that_is_taken_is_refused_before_any_work(refused, command):
    for take in TAKEN:
        output = command.split()[-1].format(output="taken")
        take(Path(output))
        refused(command, r"`--output` must be a new .*got taken", output="taken")
        shutil.rmtree("mine", ignore_errors=True)
        (shutil.rmtree if take is taken_by_a_folder else os.unlink)(output)
    refused(command, "(File name too long|cannot be written to)", output=WIDE)
    Path("file").touch()
    message = "(Not a directory|in a folder, got file/out|File exists)"
    refused(command, message, output="file/out")


def test_the_names_in_the_way_of_an_output_are_left_alone(run, small_models, tmp_path, monkeypatch):
    """What an earlier version wrote to first, whatever it was, or where it led."""
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text(GOOD)
    Path("letter.txt").write_text("mine")
    Path("out.jsonl.partial").symlink_to("letter.txt")
    words = ("predict", small_models / "classifier", "good.jsonl", "--output", "out.jsonl")
    assert run(*words)[0] == 0
    assert Path("letter.txt").read_text() == "mine"
    assert Path("out.jsonl.partial").is_symlink()
    assert len(Path("out.jsonl").read_text().splitlines()) == 30
