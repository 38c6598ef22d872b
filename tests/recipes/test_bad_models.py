"""Damaged models and plans, against every command that loads them."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from bad_input import GOOD, LOADS
from nystromer.hf import (
    LayerChoice,
    Plan,
)


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
def test_a_damaged_model_is_named_by_every_command(refused, small_models, damage):
    edit, message = DAMAGES[damage]
    for command, kind in LOADS.items():
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree(small_models / kind, "damaged")
        edit(Path("damaged"))
        refused(command, message, **{kind: "damaged"})
    assert not list(Path.cwd().glob("made by*"))


def test_landmarks_that_are_a_word_are_named(refused, small_models):
    for command, kind in LOADS.items():
        if kind != "encoder":
            shutil.rmtree("damaged", ignore_errors=True)
            shutil.copytree(small_models / kind, "damaged")
            edited(num_landmarks="x")(Path("damaged"))
            refused(command, NO_MODEL + ".*num_landmarks", **{kind: "damaged"})


def test_predict_takes_a_model_that_its_files_fill_and_no_other(refused, small_models):
    shutil.copytree(small_models / "classifier", "damaged")
    tensors(lambda x, _: x.update(more=torch.zeros(3)))(Path("damaged"))
    command = "predict {classifier} good.jsonl --output out.jsonl"
    refused(command, NO_MODEL + "1 tensors do not fit, more has no place", classifier="damaged")
    refused(command, "is a BertModel, which gives no labels", classifier=small_models / "encoder")


def test_what_is_no_encoder_gets_the_real_reason(refused, small_models):
    for command, kind in LOADS.items():
        if kind == "encoder" and not command.startswith("train"):
            refused(
                command, "is a Nyströmformer, whose.*already", encoder=small_models / "pretrained"
            )


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


def test_a_model_that_answers_nan_is_no_success(run, small_models, tmp_path, monkeypatch):
    """Its weights are finite, its answers are not."""
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text(GOOD)
    shutil.copytree(small_models / "classifier", "huge")
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
