"""Bad input against every command that reads it: one sentence, exit code 2, nothing written."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from nystromer.hf import (
    LayerChoice,
    NystromformerForPreTraining,
    NystromformerForSequenceClassification,
    Plan,
)
from nystromer.recipes.inputs.presets import preset
from nystromer.recipes.inputs.tokenizers import load_tokenizer

GOOD = "".join(
    json.dumps({"text": f"w{i} w{i + 1}. w2. w3.", "label": i % 2}) + "\n" for i in range(30)
)
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_landmarks": 4, "max_length": 64}
WIDE = "x" * 300

READS_ROWS = {  # and whether the command has --skip-bad-lines
    "train --train-file {file} --max-length 64 --output out": True,
    "predict {classifier} {file} --output out.jsonl": True,
    "pretrain {file} --tokenizer bytes --sequence-length 32 --output out": True,
    "inspect {encoder} --text {file} --num-landmarks 4 --output out.png": False,
    "calibrate {encoder} --text {file} --num-landmarks 4 --output out.json": False,
    "convert {encoder} --distill --text {file} --num-landmarks 4 --output out": False,
}
LOADS = {
    "train --train-file good.jsonl --model {encoder} --output out": "encoder",
    "convert {encoder} --output out": "encoder",
    "convert {encoder} --distill --text good.jsonl --output out": "encoder",
    "calibrate {encoder} --text good.jsonl --output out.json": "encoder",
    "inspect {encoder} --text good.jsonl --output out.png": "encoder",
    "predict {classifier} good.jsonl --output out.jsonl": "classifier",
    "train --train-file good.jsonl --model {classifier} --output out": "classifier",
    "pretrain good.jsonl --from {pretrained} --sequence-length 32 --output out": "pretrained",
}
WRITES = (
    "train --train-file good.jsonl --output {output}",
    "predict {classifier} good.jsonl --output {output}.jsonl",
    "pretrain good.jsonl --tokenizer bytes --sequence-length 32 --output {output}",
    "lra listops --steps 1 --batch-size 2 --rows 8 --eval-rows 4 --cache cache --output {output}",
    "convert {encoder} --output {output}",
    "convert {encoder} --distill --text good.jsonl --output {output}",
    "convert old.model --output {output}",
    "calibrate {encoder} --text good.jsonl --output {output}.json",
    "inspect {encoder} --text good.jsonl --output {output}.png",
    "bench --lengths 64 --methods exact --repeats 1 --output {output}",
    "demo --output {output}",
)


@pytest.fixture(scope="module")
def models(encoder, tmp_path_factory):
    """The folders of small models, of every kind that a command loads."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), load_tokenizer("bytes")
    torch.manual_seed(0)
    for name, kind in (
        ("classifier", NystromformerForSequenceClassification),
        ("pretrained", NystromformerForPreTraining),
    ):
        kind(preset("tiny", tokenizer, **SIZES)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(encoder, folder / "encoder")
    return folder


@pytest.fixture
def refused(run, models, tmp_path, monkeypatch):
    """Runs a command that must be refused in one sentence, and leave everything as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    Path("good.jsonl").write_text(GOOD)

    def call(command, message, **paths):
        paths = {**{x.name: x for x in models.iterdir()}, **paths}
        before = everything(tmp_path)
        code, _, error = run(*command.format(**paths).split())
        assert code == 2, error
        assert re.search(message, error), error
        assert everything(tmp_path) == before

    return call


def everything(folder):
    """Names and contents of all that is there, but for folders of a cache that are empty."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
        if not (path.is_dir() and "cache" in path.parts)
    }


BAD_LINES = {
    "a number for a text": (b'{"text": 3, "label": 1}', "must hold text, got 3"),
    "a list for a text": (b'{"text": ["a"], "label": 1}', "must hold text, got"),
    "half of a character": (b'{"text": "\\ud800", "label": 1}', "half of a character"),
    "nested brackets": (b"[" * 100_000, "not JSON"),
    "cut": (b'{"text": "a', "not JSON"),
    "a list": (b"[1, 2]", "not a JSON object but a list"),
    "bytes": (b"\xff\xfe\x00", "not UTF-8 text"),
    "a zero byte": (b'{"text": "\0", "label": 1}', "binary"),
    "a name twice": (b'{"text": "a", "text": "b", "label": 1}', "stands twice"),
    "no text": (b'{"label": 1}', "has no column 'text'"),
    "null": (b'{"text": null, "label": 1}', "has no value in the column 'text'"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("first", [True, False], ids=["first line", "last line"])
def test_a_bad_line_is_named_by_every_command(refused, bad, first):
    line, message = BAD_LINES[bad]
    good = GOOD.encode()
    Path("bad.jsonl").write_bytes(line + b"\n" + good if first else good + line + b"\n")
    number = 1 if first else 31
    for command, skips in READS_ROWS.items():
        advice = "correct it, or go on without such lines by --skip" if skips else r"correct it\.$"
        refused(command, rf"bad.jsonl, line {number}: .*{message}.*; {advice}", file="bad.jsonl")


BAD_FILES = {
    "twice.csv": (b"text,label,text\na,1,b\n", "twice.csv: the name 'text' stands twice; rename"),
    "empty.jsonl": (b"", "empty.jsonl holds no rows"),
    "plain.jsonl.gz": (b"no such thing", "plain.jsonl.gz cannot be read: Not a gzipped file"),
    "cut.jsonl.xz": (b"\xfd7zXZ\0\0", "cut.jsonl.xz cannot be read: Compressed file ended"),
    "no.parquet": (b"no such thing", "no.parquet cannot be read"),
    "none.jsonl": (None, "none.jsonl cannot be read: No such file"),
    "none.csv": (None, "none.csv cannot be read: No such file"),
    "none.parquet": (None, "none.parquet cannot be read: No such file"),
    "in.jsonl/in": (None, "in.jsonl/in cannot be read: Not a directory"),
    f"{WIDE}.jsonl": (None, "cannot be read: File name too long"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_by_every_command(refused, name):
    content, message = BAD_FILES[name]
    Path("in.jsonl").touch()
    if content is not None:
        Path(name).write_bytes(content)
    for command in READS_ROWS:
        refused(command, message, file=name)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("NaN", "not JSON"),
        ("1e999", "must hold a label, got inf"),
        ("[0]", "must hold a label, got"),
        ('""', "must hold a label, got ''"),
        ('"nan"', "must hold a label, got 'nan', which is no number"),
        ("null", "has no value in the column 'label'"),
    ],
)
def test_a_bad_label_is_named(refused, label, message):
    Path("bad.jsonl").write_text(f'{GOOD}{{"text": "a", "label": {label}}}\n')
    command = next(iter(READS_ROWS))
    refused(command, rf"bad.jsonl, line 31: .*{message}.*by --skip-bad", file="bad.jsonl")


@pytest.mark.parametrize("held_out", ["", " --eval-file good.jsonl"])
def test_as_many_labels_as_rows_are_refused_before_the_training(refused, held_out):
    Path("many.csv").write_text("text,label\n" + "".join(f"a,{i}\n" for i in range(40)))
    command = next(iter(READS_ROWS)) + held_out
    refused(command, r"got as many different values as rows \(40\)", file="many.csv")


def edited(**fields):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def cut(name, length):
    def edit(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:length])

    return edit


def tensors(change):
    def edit(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights, sorted(x for x in weights if "layer.0" in x)[0])
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))


def own_code(folder):
    code = "import os\nos.mkdir('made by its code')\n"
    (folder / "code.py").write_text(code + "class C:\n    model_type = 'own'\n")
    auto = dict.fromkeys(
        ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "code.C"
    )
    edited(model_type="own", auto_map=auto)(folder)


NO_MODEL = "No model can be loaded from damaged: "
DAMAGES = {
    "empty weights": (cut("model.safetensors", 0), NO_MODEL),
    "cut weights": (cut("model.safetensors", 999), NO_MODEL),
    "empty config": (cut("config.json", 0), NO_MODEL),
    "cut config": (cut("config.json", 20), NO_MODEL),
    "no heads": (edited(num_attention_heads=0), NO_MODEL),
    "unknown activation": (edited(hidden_act="magic"), NO_MODEL + ".*magic"),
    "a word for a number": (edited(num_hidden_layers="x"), NO_MODEL),
    "another width": (edited(hidden_size=64, num_attention_heads=4), NO_MODEL),
    "more layers": (edited(num_hidden_layers=5), NO_MODEL + r"\d+ tensors .* is missing"),
    "fewer layers": (edited(num_hidden_layers=1), NO_MODEL + r"\d+ tensors .* has no place in it"),
    "a tensor less": (tensors(lambda x, name: x.pop(name)), NO_MODEL + "1 tensors .* is missing"),
    "NaN": (tensors(lambda x, name: x[name].fill_(torch.nan)), NO_MODEL + ".* not finite"),
    "another model": (edited(model_type="roberta"), f"{NO_MODEL}|`--from` goes on with a Nyst"),
    "no model": (edited(model_type="nothing"), NO_MODEL),
    "a pickle with code": (pickled, NO_MODEL),
    "code of its own": (own_code, NO_MODEL + ".*custom code"),
    "a tokenizer that is none": (cut("tokenizer.json", 9), "No tokenizer can be loaded from damag"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_named_by_every_command(refused, models, damage):
    edit, message = DAMAGES[damage]
    for command, kind in LOADS.items():
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree(models / kind, "damaged")
        edit(Path("damaged"))
        refused(command, message, **{kind: "damaged"})
    assert not list(Path.cwd().glob("made by*"))


def test_landmarks_that_are_a_word_are_named(refused, models):
    for command, kind in LOADS.items():
        if kind != "encoder":
            shutil.rmtree("damaged", ignore_errors=True)
            shutil.copytree(models / kind, "damaged")
            edited(num_landmarks="x")(Path("damaged"))
            refused(command, NO_MODEL + ".*num_landmarks", **{kind: "damaged"})


def test_predict_takes_a_model_that_its_files_fill_and_no_other(refused, models):
    shutil.copytree(models / "classifier", "damaged")
    tensors(lambda x, _: x.update(more=torch.zeros(3)))(Path("damaged"))
    command = "predict {classifier} good.jsonl --output out.jsonl"
    refused(command, NO_MODEL + "1 tensors do not fit, more has no place", classifier="damaged")
    refused(command, "is a BertModel, which gives no labels", classifier=models / "encoder")


def test_what_is_no_encoder_gets_the_real_reason(refused, models):
    for command, kind in LOADS.items():
        if kind == "encoder" and not command.startswith("train"):
            refused(command, "is a Nyströmformer, whose.*already", encoder=models / "pretrained")


def plan_of(**fields):
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    plan = Plan("bert", tuple(LayerChoice(name, num_landmarks=4) for name in names)).to_dict()
    plan["layers"][0] |= fields
    return json.dumps(plan).encode()


PLANS = {
    "no UTF-8": (b"\xff", "'utf-8' codec can't decode"),
    "no JSON": (b"{", "`plan` must be JSON"),
    "nested brackets": (b"[" * 100_000, "RecursionError|maximum recursion"),
    "a list": (b"[]", "`plan` must hold model_type and layers"),
    "a number of layers": (b'{"model_type": "bert", "layers": 3}', "`plan` must hold"),
    "a layer twice": (plan_of(name="encoder.layer.1.attention.self"), "stands twice"),
    "a head twice": (plan_of(exact_heads=[1, 1]), "an exact head stands twice"),
    "NaN for a tap": (
        plan_of(conv_kernel_size=1, conv_taps=[[1.0], [float("nan")]] * 2),
        "conv_taps or ridge are not finite in the layer encoder.layer.0",
    ),
    "an infinite ridge": (plan_of(ridge=float("inf")), "conv_taps or ridge are not finite"),
    "a huge kernel": (plan_of(conv_kernel_size=10**9 + 1), "conv_kernel_size is 1,000,000,001"),
    "a word for a number": (plan_of(num_landmarks="x"), "`num_landmarks` must be an int"),
    "an unknown field": (plan_of(more=1), "`plan` must hold"),
}


@pytest.mark.parametrize("bad", PLANS)
def test_a_bad_plan_is_named(refused, bad):
    content, message = PLANS[bad]
    Path("plan.json").write_bytes(content)
    for more in ("", " --distill --text good.jsonl"):
        command = "convert {encoder} --plan plan.json --output out" + more
        refused(command, rf"The plan plan.json is none: .*({message})")


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


def test_the_names_in_the_way_of_an_output_are_left_alone(run, models, tmp_path, monkeypatch):
    """What an earlier version wrote to first, whatever it was, or where it led."""
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text(GOOD)
    Path("letter.txt").write_text("mine")
    Path("out.jsonl.partial").symlink_to("letter.txt")
    words = ("predict", models / "classifier", "good.jsonl", "--output", "out.jsonl")
    assert run(*words)[0] == 0
    assert Path("letter.txt").read_text() == "mine"
    assert Path("out.jsonl.partial").is_symlink()
    assert len(Path("out.jsonl").read_text().splitlines()) == 30


def test_a_model_that_answers_nan_is_no_success(run, models, tmp_path, monkeypatch):
    """Its weights are finite, its answers are not."""
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text(GOOD)
    shutil.copytree(models / "classifier", "huge")
    tensors(lambda x, name: x["classifier.dense.weight"].fill_(3e38))(Path("huge"))
    words = ("predict", "huge", "good.jsonl", "--output", "out.jsonl")
    code, _, error = run(*words)
    assert (code, error) == (1, "huge answers with NaN; nothing was written.")
    assert not Path("out.jsonl").exists()


def test_a_roberta_that_says_bert_is_refused(refused, tmp_path, words):
    """Both have the same names for their tensors: the config tells."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=204, num_hidden_layers=1, **sizes))
    model.save_pretrained("damaged")
    words.save_pretrained("damaged")
    edited(model_type="roberta")(Path("damaged"))
    message = "says model_type roberta and architectures BertModel, which is another"
    refused("convert {encoder} --output out", message, encoder="damaged")
