import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
)

from nystromer.hf import NystromformerForMaskedLM, nystromize, plan_of
from nystromer.recipes.classify.examples import length
from nystromer.recipes.classify.model import new_classifier
from nystromer.recipes.classify.predict import columns_of
from nystromer.recipes.classify.settings import Settings
from nystromer.recipes.classify.tasks import Columns
from nystromer.recipes.classify.train import later_starts, scores, train_classifier
from nystromer.recipes.inputs.presets import preset
from nystromer.recipes.inputs.tokenizers import load_tokenizer

DATA = Path(os.environ.get("NYSTROMER_DATA", "../shared/data"))
SMALL = "--max-length 64 --num-landmarks 4 --epochs 4"


def write_rows(path, count, seed=0):
    """More a than b is an A."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for i in range(count):
            letters = draw.choices("ab", (2, 1) if i % 2 else (1, 2), k=draw.randint(20, 60))
            row = {"text": "".join(letters), "label": "A" if i % 2 else "B"}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Words for the command line: own files."""
    folder = tmp_path_factory.mktemp("files")
    train = write_rows(folder / "train.jsonl", 96)
    dev = write_rows(folder / "dev.jsonl", 32, seed=1)
    return ["--train-file", str(train), "--eval-file", str(dev)]


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """The folder of a run, of a program of its own."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert program(files, folder).wait() == 0
    return folder


def program(files, folder):
    code = "from nystromer.cli import main; main()"
    words = ["train", *files, *SMALL.split(), "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], env=environment, stderr=subprocess.DEVNULL
    )


def test_train_learns_and_writes_everything(run, whole, files):
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 96, "dev": 32}
    assert set(metrics["dev"]) == {"loss", "accuracy", "f1"}
    assert metrics["dev"]["accuracy"] > 0.8
    config = AutoConfig.from_pretrained(whole)
    assert config.id2label == {0: "A", 1: "B"}
    assert (config.num_landmarks, config.exact_attention) == (4, False)
    assert (config.classifier_pooling, config.initializer_range) == ("mean", 0.1)
    assert config.ngram_size == 5
    record = json.loads((whole / "run.json").read_text())
    assert record["command"].endswith(f"--output {whole}")
    assert record["settings"]["learning_rate"] > 0
    assert (whole / "curves.png").exists()
    code, out, _ = run("train", *files, *SMALL.split(), "--output", whole, "--resume")
    assert code == 0  # there is nothing left to do
    assert f"{metrics['dev']['accuracy']:.4f}" in out


def test_a_killed_training_goes_on_to_the_same_metrics(run, whole, files, tmp_path):
    folder = tmp_path / "run"
    running = program(files, folder)
    while not list(folder.glob("checkpoint-*")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    assert run("train", *files, *SMALL.split(), "--output", folder)[0] == 2
    assert run("train", *files, *SMALL.split(), "--output", folder, "--resume")[0] == 0
    assert (folder / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    weights = [load_file(path / "model.safetensors") for path in (folder, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_predict_gives_the_labels_that_were_measured(run, whole, files, tmp_path):
    output = tmp_path / "out.jsonl"
    code, out, _ = run("predict", whole, files[3], "--output", output, "--batch-size", 4)
    assert (code, f"Written: {output}" in out.replace("\n", "")) == (0, True)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    given = [json.loads(line) for line in Path(files[3]).read_text().splitlines()]
    assert [row["text"] for row in rows] == [row["text"] for row in given]
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == json.loads((whole / "metrics.json").read_text())["dev"]["accuracy"]
    assert all(0.5 <= row["probability"] <= 1 for row in rows)


def test_predict_reads_and_writes_csv_and_other_columns(run, whole, tmp_path):
    (tmp_path / "in.csv").write_text('mail,n\n"a,a",1\nbb\nbbb,3\n')
    words = ("predict", whole, tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    code, _, error = run(*words)
    assert (code, "line 2: has no column 'text'; it has 'mail', 'n'; correct it" in error) == (
        2,
        True,
    )
    code, _, error = run(*words, "--text-column", "mail")
    assert (code, "in.csv, line 3: 1 fields where" in error) == (2, True)
    assert not (tmp_path / "out.csv").exists()
    code, out, _ = run(*words, "--text-column", "mail", "--skip-bad-lines")
    assert (code, "1 lines skipped" in out) == (0, True)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "mail,n,predicted,probability"
    assert re.fullmatch(r'"a,a",1,[AB],0\.\d+', lines[1])
    assert len(lines) == 3


@pytest.mark.parametrize("name", ["sst2", "mrpc", "qnli", "imdb"])
def test_a_named_task_trains_offline(name, tmp_path):
    if not DATA.exists():
        pytest.skip(f"no {DATA}: set NYSTROMER_DATA")
    settings = Settings(name, DATA, max_length=64, num_landmarks=8, epochs=1, limit=32)
    metrics = train_classifier(settings, tmp_path / "run")
    held_out = {"sst2": {"dev"}, "qnli": {"dev"}}.get(name, {"dev", "test"})
    assert set(metrics["rows"]) == {"train", *held_out}
    assert all({"accuracy", "f1"} < set(metrics[split]) for split in held_out)
    config = AutoConfig.from_pretrained(tmp_path / "run")
    assert "positive" in config.label2id or name in ("mrpc", "qnli")
    assert len(config.text_columns) == (2 if name in ("mrpc", "qnli") else 1)


@pytest.mark.parametrize(
    ("name", "labels", "columns", "held_out"),
    [
        (
            "mnli",
            ["neutral", "entailment", "contradiction"],
            ("sentence1", "sentence2", "gold_label"),
            {"dev_matched", "dev_mismatched"},
        ),
        ("qqp", ["0", "1"], ("question1", "question2", "is_duplicate"), {"dev"}),
    ],
)
def test_a_task_of_glue_trains_on_its_own_files(name, labels, columns, held_out, tmp_path):
    """Rows made up in the layout of GLUE's files, which are not at hand."""
    (tmp_path / name).mkdir()
    for split in ("train", *held_out):
        lines = [("some words", f"other words {i}", labels[i % len(labels)]) for i in range(24)]
        text = "".join("\t".join(fields) + "\n" for fields in [columns, *lines])
        (tmp_path / name / f"{split}.tsv").write_text(text)
    settings = Settings(name, tmp_path, max_length=64, num_landmarks=8, epochs=1)
    metrics = train_classifier(settings, tmp_path / "run")
    score = "macro_f1" if name == "mnli" else "f1"
    assert all(set(metrics[split]) == {"loss", "accuracy", score} for split in held_out)


@pytest.mark.parametrize(
    ("options", "pair", "part"),
    [
        ({}, None, 1 / 3),
        ({"later_starts": 0.5}, None, 0.5),
        ({"later_starts": 0.0}, None, 0.0),
        ({}, "other", 0.0),
        ({"tokenizer": "dna"}, None, 0.0),
        ({"preset": "bert-small"}, None, 0.0),
        ({"model": "some"}, None, 0.0),
    ],
)
def test_texts_start_later_where_tiny_reads_bytes(options, pair, part):
    settings = Settings("imdb", **options).resolved()
    assert later_starts(settings, Columns("text", pair=pair)) == part


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, ("mean", 0.1, 5)),
        ({"tokenizer": "dna"}, ("mean", 0.1, 1)),
        ({"preset": "bert-small"}, ("cls", 0.02, 1)),
    ],
)
def test_a_new_model_is_made_for_its_tokens(options, fields):
    settings = Settings("imdb", max_length=16, **options).resolved()
    config = new_classifier(settings, ["a", "b"], Columns("text"))[0].config
    found = (config.classifier_pooling, config.initializer_range, config.ngram_size)
    assert found == fields


def test_texts_that_start_later_are_read_beyond_the_length(files, tmp_path, monkeypatch):
    def later_starts(examples, part, max_length, seed):
        raise LookupError(max(map(length, examples)), part, max_length, seed)

    monkeypatch.setattr("nystromer.recipes.classify.train.LaterStarts", later_starts)
    settings = Settings(train_file=Path(files[1]), max_length=16, later_starts=0.5, seed=7)
    with pytest.raises(LookupError) as found:
        train_classifier(settings, tmp_path / "run")
    assert found.value.args == (32, 0.5, 16, 7)


def tiny_checkpoint(folder):
    tokenizer = load_tokenizer("bytes")
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    config = preset("tiny", tokenizer, max_length=64, num_landmarks=8, **sizes)
    NystromformerForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "exact", "landmarks"),
    [
        ({}, False, 8),
        ({"attention": "exact"}, True, 8),
        ({"attention": "nystrom", "num_landmarks": 4}, False, 4),
    ],
)
def test_a_nystromformer_is_fine_tuned(files, tmp_path, options, exact, landmarks):
    tiny_checkpoint(tmp_path / "model")
    settings = Settings(
        train_file=Path(files[1]), model=str(tmp_path / "model"), epochs=1, limit=32, **options
    )
    metrics = train_classifier(settings, tmp_path / "run")
    assert metrics["rows"] == {"train": 32, "dev": 10}  # a tenth held out
    config = AutoConfig.from_pretrained(tmp_path / "run")
    assert (config.exact_attention, config.num_landmarks) == (exact, landmarks)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (stored["learning_rate"], stored["batch_size"]) == (3e-5, 32)
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == 64


@pytest.mark.parametrize("attention", [None, "exact"])
def test_an_encoder_is_swapped_and_fine_tuned(encoder, files, tmp_path, attention):
    path = tmp_path / "words.csv"
    path.write_text("text,label\n" + "".join(f"w{i} w{i + 9},{i % 2}\n" for i in range(40)))
    settings = Settings(train_file=path, model=str(encoder), attention=attention, epochs=1)
    train_classifier(settings, tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    if attention == "exact":
        assert getattr(model.config, "nystrom", None) is None
    else:
        assert [x.attention for x in plan_of(model).layers] == ["nystrom"] * 2


def test_a_converted_encoder_keeps_its_plan(encoder, files, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    nystromize(model, 5, layers=[1]).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "model")
    options = {"train_file": Path(files[1]), "model": str(tmp_path / "model"), "epochs": 1}
    train_classifier(Settings(**options, limit=32), tmp_path / "run")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert [x.attention for x in plan_of(again).layers] == ["exact", "nystrom"]
    with pytest.raises(ValueError, match=r".*model was converted to Nyström attention by a plan"):
        train_classifier(Settings(**options, attention="exact"), tmp_path / "other")


def test_scores_by_hand():
    two = EvalPrediction(np.array([[1, 0], [0, 1], [0, 1], [1, 0]]), np.array([0, 1, 0, 1]))
    assert scores(two) == {"accuracy": 0.5, "f1": 0.5}
    three = EvalPrediction(np.eye(3), np.array([0, 1, 1]))
    assert scores(three) == pytest.approx({"accuracy": 2 / 3, "macro_f1": (1 + 2 / 3) / 3})


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train", "A training needs a TASK or a --train-file, got neither; give one"),
        ("train sst2 --train-file {train}", "got both; give one"),
        ("train sst3", "TASK must be one of sst2, .*, got 'sst3'"),
        ("train --train-file none.csv", "none.csv cannot be read: No such file"),
        ("train --train-file empty.csv", "empty.csv holds no rows"),
        ("train --train-file picture.csv", "picture.csv, line 1: not UTF-8 text"),
        ("train --train-file broken.jsonl", "broken.jsonl, line 2: not JSON"),
        (
            "train --train-file {train} --text-column mail",
            "train.jsonl, line 1: has no column 'mail'; it has 'text', ",
        ),
        (
            "train --train-file {train} --label-column spam",
            "train.jsonl, line 1: has no column 'spam'; it has 'text', ",
        ),
        ("train --train-file one.csv", "at least two labels, got '1' alone"),
        (
            "train --train-file {train} --eval-file one.csv",
            "The dev rows hold the label '1', which",
        ),
        ("train --train-file {train} --later-starts 1", "`later_starts` must be at least 0 and"),
        (
            "train --train-file {train} --text-pair-column label --later-starts 0.2",
            "`later_starts` is for single texts, got 0.2 for pairs",
        ),
        ("train --train-file {train} --preset huge", "`preset` must be one of .*, got 'huge'"),
        ("train --train-file {train} --attention fast", "`attention` must be .*, got 'fast'"),
        (
            "train --train-file {train} --tokenizer no/such",
            "No tokenizer can be loaded from no/such",
        ),
        ("train --train-file one.csv --eval-file {train} --tokenizer dna", "at least two labels"),
        ("train --train-file prose.csv --tokenizer dna", "`--tokenizer dna` is for A, C, G, T"),
        ("train --train-file {train} --model no/such", "No model can be loaded from no/such"),
        ("train --train-file {train} --model {encoder} --preset tiny", "got a --model too; leave"),
        (
            "train --train-file {train} --model {encoder} --max-length 65",
            "`--max-length` must be at most the 64 positions of .*, got 65",
        ),
        (
            "train --train-file {train} --model {encoder} --tokenizer bytes",
            "`--tokenizer` must be that of the model, got one of 260 tokens where .* has 204",
        ),
        ("train --train-file {train} --epochs 0", "`epochs` must be at least 1, got 0"),
        (
            "train --train-file {train} --token-dropout 1",
            "`token_dropout` must be at least 0 and below 1, got 1.0",
        ),
        (
            "train --train-file {train} --learning-rate 0",
            "`learning_rate` must be above 0 and finite, got 0",
        ),
        (
            "train --train-file {train} --batch-size 8 --device-batch 3",
            "`batch_size` must be a multiple of 1 processes × 3 rows, got 8",
        ),
        ("train --train-file {train} --output {whole}", "which holds a run; add --resume"),
        ("train --train-file {train} --output {whole} --resume", "got eval_file = None where"),
        ("train --train-file {train} --output .", "which holds something else"),
        ("predict {whole} none.csv", "none.csv cannot be read: No such file"),
        ("predict {whole} one.csv --output a.txt", "`--output` must be a new .jsonl or .csv file"),
        ("predict {whole} one.csv --output one.csv", "`--output` must be a new .jsonl or .csv"),
        (
            "train --train-file {train} --learning-rate inf",
            "`--learning-rate` must be a finite number, got inf",
        ),
        (
            "predict {whole} one.csv --text-pair-column label --output b.csv",
            "was trained on one text, got a second in the column 'label'; leave",
        ),
        ("predict {whole} done.csv --output b.csv", "done.csv has a column 'predicted' already"),
        ("predict cut one.csv --output b.csv", "No model can be loaded from cut"),
        ("predict no/such one.csv", "No model can be loaded from no/such"),
        ("predict {encoder} one.csv", "is a BertModel, which gives no labels; train it first"),
    ],
)
def test_bad_input_is_one_sentence(
    run, encoder, files, whole, tmp_path, monkeypatch, command, message
):
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").touch()
    Path("picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    Path("broken.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b"\n')
    Path("one.csv").write_text("text,label\n" + "a,1\n" * 9)
    Path("prose.csv").write_text("text,label\n" + "hello,1\nyou,2\n" * 9)
    Path("done.csv").write_text("text,predicted\n" + "a,1\n" * 9)
    shutil.copytree(whole, "cut")
    Path("cut/model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:999])
    before = sorted(tmp_path.iterdir())
    paths = {"train": files[1], "encoder": encoder, "whole": whole}
    code, _, error = run(*command.format(**paths).split())
    assert code == 2
    assert re.search(message, error)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (None, ("a", "b")),
        ((None, None), ("a", "b")),
        ((None, "second"), ("a", "second")),
        (("first", None), ("first", "b")),
    ],
)
def test_a_column_replaces_its_own_alone(given, columns):
    assert columns_of(SimpleNamespace(text_columns=["a", "b"]), given) == columns
