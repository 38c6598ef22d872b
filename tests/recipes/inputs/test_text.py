import gzip
import json
import lzma

import pytest
import torch
from transformers import EsmTokenizer

from nystromer.recipes.inputs.text import passages, read_text, standard_text

LINES = ["one two", "three ü"]


@pytest.mark.parametrize(
    ("name", "opener"), [("a.txt", open), ("a.txt.xz", lzma.open), ("a.md.gz", gzip.open)]
)
def test_read_text_reads_text(tmp_path, name, opener):
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("\n".join(LINES))
    assert read_text(tmp_path / name) == "one two\nthree ü"


def test_read_text_takes_the_text_field_of_json_lines(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": 1, "text": line}) + "\n" for line in LINES)
    assert read_text(path) == "one two\nthree ü"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, r"none.txt cannot be read: No such file or directory\.$"),
        ("a.txt", b"\xff\xfe", "a.txt, line 1: not UTF-8 text"),
        (
            "a.jsonl",
            b'{"txt": 1}',
            "a.jsonl, line 1: has no column 'text'; it has 'txt'; correct it",
        ),
        (
            "a.jsonl",
            b'{"text": 1}',
            r"a.jsonl, line 1: the column 'text' must hold text, got 1 \(int\); correct it\.",
        ),
    ],
)
def test_read_text_refuses(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / name)


def test_standard_text_is_long_english():
    text = standard_text()
    assert len(text) > 100_000
    assert "assignment" in text


def test_passages_are_whole_and_do_not_overlap(words):
    text = " ".join(f"w{i}" for i in range(25))
    ids = passages(words, [text], 9, length=10)
    assert ids.shape == (3, 10)  # eight words each, with [CLS] and [SEP]; the 25th is dropped
    assert ids[:, 0].eq(words.cls_token_id).all()
    assert ids[:, -1].eq(words.sep_token_id).all()
    assert sorted(ids[:, 1:-1].flatten().tolist()) == words.convert_tokens_to_ids(text.split()[:24])


def test_passages_are_drawn_from_every_text_by_the_seed(words):
    texts = [" ".join(f"w{i}" for i in range(j, j + 80)) for j in (0, 100)]
    found = [passages(words, texts, 5, length=10, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    everything = passages(words, texts, 20, length=10)
    assert len(everything) == 20
    assert len(everything.unique(dim=0)) == 20


@pytest.mark.parametrize("texts", [[""], ["w1 w2"], ["w1 w2", " "]])
def test_passages_refuses_too_little_text(words, texts):
    with pytest.raises(ValueError, match="at least one passage of 10 tokens, got less"):
        passages(words, texts, 5, length=10)


def test_passages_are_cut_whatever_the_tokenizer(tmp_path):
    """A tokenizer written in Python, which returns no overflowing pieces of a text."""
    letters = ["<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "G", "V", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(letters))
    tokenizer = EsmTokenizer(str(tmp_path / "vocab.txt"))
    ids = passages(tokenizer, ["LAGV" * 25 + "L"], 99, length=12)
    assert ids.shape == (10, 12)  # ten letters each, with <cls> and <eos>; the last is dropped
    assert ids[:, 0].eq(0).all()
    assert ids[:, -1].eq(2).all()
    assert sorted(ids[:, 1:-1].flatten().tolist()) == sorted([4, 5, 6, 7] * 25)
