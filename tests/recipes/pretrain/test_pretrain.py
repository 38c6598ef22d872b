import functools
import json
import math
import re

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from nystromer.hf import NystromformerConfig, NystromformerForPreTraining
from nystromer.recipes.inputs.presets import PRESETS
from nystromer.recipes.pretrain.vocabulary import train_tokenizer

SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
}
QUICK = ["--tokenizer", "bytes", "--sequence-length", 64, "--num-landmarks", 8, "--held-out", 0.2,
         "--steps", 6, "--evaluations", 3, "--batch-size", 8, "--device-batch", 4]  # fmt: skip


@pytest.fixture
def pretrain(run, monkeypatch):
    """`run` for `nystromer pretrain <words>`, with a smaller tiny."""
    monkeypatch.setitem(PRESETS, "tiny", lambda **x: NystromformerConfig(**{**x, **SMALL}))
    return functools.partial(run, "pretrain")


def metrics_of(folder):
    found = json.loads((folder / "metrics.json").read_text())
    return {name: x for name, x in found.items() if not re.search("runtime|second", name)}


@pytest.mark.parametrize("attention", ["nystrom", "exact"])
def test_pretrain_writes_a_model_that_others_read(pretrain, file, tmp_path, attention):
    output = tmp_path / "out"
    code, out, error = pretrain(file, *QUICK, "--attention", attention, "--output", output)
    assert code == 0, error
    assert re.search(r"masked words +\d\.\d+ +0\.\d+", out)
    assert re.search(r"sentence order +0\.\d+ +[01]\.\d+", out)
    assert "rows after 6 steps" in out
    metrics = metrics_of(output)
    assert (metrics["documents"], metrics["steps"]) == (60, 6)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    evaluated = [x for x in log if "eval_order_accuracy" in x]
    assert [x["step"] for x in evaluated] == [2, 4, 6, 6]
    config = AutoModelForMaskedLM.from_pretrained(output).config
    assert (config.exact_attention, config.num_landmarks) == (attention == "exact", 8)
    AutoModelForSequenceClassification.from_pretrained(output)
    assert AutoTokenizer.from_pretrained(output).mask_token == "[MASK]"
    code, _, error = pretrain(file, *QUICK, "--attention", attention, "--output", output)
    assert (code, "holds a run; add --resume" in error) == (2, True)


def test_both_losses_fall(pretrain, tmp_path):
    """Sentences count up, so that their order can be learnt."""
    file, output = tmp_path / "a.txt", tmp_path / "out"
    file.write_text("\n\n".join(f"{'a' * (1 + i % 3)}. b. c. d. e." for i in range(300)))
    words = ["--sequence-length", 32, "--num-landmarks", 8, "--tokenizer", "bytes"]
    rates = ["--held-out", 0.1, "--learning-rate", 1e-2, "--steps", 120, "--batch-size", 16]
    assert pretrain(file, *words, *rates, "--evaluations", 4, "--output", output)[0] == 0
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    found = [x for x in log if "eval_loss" in x]
    assert found[-1]["eval_word_loss"] < 0.4 * math.log(260)  # of chance
    assert found[-1]["eval_order_loss"] < 0.8 * math.log(2)
    assert found[-1]["eval_order_accuracy"] > 0.75


def test_a_checkpoint_goes_on_and_is_lengthened(pretrain, file, tmp_path):
    first, longer, other = (tmp_path / name for name in ("first", "longer", "other"))
    train_tokenizer(lambda: [chr(i) for i in range(0x4E00, 0x4E00 + 300)], 900).save_pretrained(
        other
    )
    assert pretrain(file, *QUICK, "--output", first)[0] == 0
    words = ["--from", first, "--sequence-length", 128, "--held-out", 0.2, "--batch-size", 4]
    code, _, error = pretrain(
        file, *words, "--steps", 1, "--learning-rate", 1e-9, "--output", longer
    )
    assert code == 0, error
    old, new = (NystromformerForPreTraining.from_pretrained(x) for x in (first, longer))
    assert (new.config.max_position_embeddings, new.config.num_landmarks) == (128, 8)
    table = new.nystromformer.embeddings.position_embeddings.weight
    torch.testing.assert_close(table[2:66], table[66:])  # copied end to end
    torch.testing.assert_close(new.pooler.weight, old.pooler.weight)
    code, _, error = pretrain(file, *words, "--tokenizer", other, "--output", tmp_path / "not")
    assert code == 2
    assert re.search(
        r"must be that of the model, got one of \d+ tokens where .*first has 260; leave", error
    )
    code, _, error = pretrain(file, "--from", tmp_path / "none", "--output", tmp_path / "not")
    assert (code, "none" in error) == (2, True)
    assert not (tmp_path / "not").exists()


def test_a_stream_trains_too(pretrain, file, tmp_path):
    folder, output = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    texts = file.read_text().split("\n\n")
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    code, _, error = pretrain("--dataset", folder, *QUICK, "--output", output)
    assert code == 0, error
    assert metrics_of(output)["train_rows"] == 0
    assert metrics_of(output)["held_out_rows"] > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none.txt", r"none.txt cannot be read: No such file or directory\.$"),
        ("", "Name files to learn from, or a --dataset, got neither"),
        ("empty.txt", "empty.txt holds no rows"),
        (
            "short.txt --tokenizer bytes",
            "at least one sequence of 512 tokens, got 9 in 1 documents",
        ),
        ("binary.txt --tokenizer bytes", r"binary.txt, line 1: .*--skip-bad-lines"),
        ("broken.jsonl --tokenizer bytes", r"broken.jsonl, line 2: not JSON .*--skip-bad-lines"),
        (
            "good.jsonl --text-column body",
            "good.jsonl, line 1: has no column 'body'; it has 'text'",
        ),
        ("good.jsonl --preset huge", "`preset` must be one of"),
        ("good.jsonl --attention full", "`attention` must be one"),
        ("good.jsonl --tokenizer none/there", "No tokenizer can be loaded from none/there"),
        ("good.jsonl --batch-size 10 --device-batch 4", "got 10; write 12"),
        ("good.jsonl --sequence-length 3", "`sequence_length` must be at least 16, got 3"),
        ("good.jsonl --output taken", "`--output` must be a new folder, got taken, which holds"),
    ],
)
def test_bad_input_is_one_sentence(pretrain, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("One. Two.")
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff\n")
    good = "".join(json.dumps({"text": f"Some {i}. Text {i}. " * 40}) + "\n" for i in range(20))
    (tmp_path / "good.jsonl").write_text(good)
    (tmp_path / "broken.jsonl").write_text('{"text": "One. Two."}\n{"text": \n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    output = [] if "--output" in words else ["--output", "out"]
    code, _, error = pretrain(*words.split(), *output)
    assert code == 2
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()
    assert [x.name for x in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
