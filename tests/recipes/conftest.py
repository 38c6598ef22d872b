"""Small models for the commands, and how a command is run, also one that must be refused."""

import re
import shutil
import sys
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bad_input import GOOD, everything
from nystromer import cli
from nystromer.hf import (
    NystromformerForPreTraining,
    NystromformerForSequenceClassification,
)
from nystromer.recipes.inputs.presets import preset
from nystromer.recipes.inputs.tokenizers import load_tokenizer

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_landmarks": 4, "max_length": 64}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit code, stdout and the last line of stderr of `nystromer <words>`."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["nystromer", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err.strip().splitlines()[-1] if shown.err.strip() else ""

    return call


@pytest.fixture(scope="session")
def words():
    """Its tokenizer."""
    return word_tokenizer()


def word_tokenizer():
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(200))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True))
    )


def tiny_bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=204,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model = BertModel(config).eval()
    for layer in model.encoder.layer:
        layer.attention.self.query.weight.data.mul_(20)
        layer.attention.self.value.weight.data.mul_(20)
    return model


@pytest.fixture(scope="session")
def encoder(words, tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("encoder")
    tiny_bert().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """3,000 words."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    draw = torch.randint(0, 200, (3000,), generator=torch.Generator().manual_seed(0))
    path.write_text(" ".join(f"w{i}" for i in draw.tolist()))
    return path


@pytest.fixture(scope="session")
def small_models(encoder, tmp_path_factory):
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
def refused(run, small_models, tmp_path, monkeypatch):
    """Runs a command that must be refused in one sentence, and leave everything as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    Path("good.jsonl").write_text(GOOD)

    def call(command, message, **paths):
        paths = {**{x.name: x for x in small_models.iterdir()}, **paths}
        before = everything(tmp_path)
        code, _, error = run(*command.format(**paths).split())
        assert code == 2, error
        assert re.search(message, error), error
        assert everything(tmp_path) == before

    return call
