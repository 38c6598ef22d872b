import json
from itertools import islice

import pytest

from nystromer.recipes.pretrain import prepare
from nystromer.recipes.pretrain.corpus import Corpus, held_out
from nystromer.recipes.pretrain.pairs import Draw
from nystromer.recipes.pretrain.prepare import (
    COUNTS,
    HELD_OUT,
    TRAIN,
    corpus_tokenizer,
    lengths_of,
    prepared,
    read_part,
    streamed,
)

OPTIONS = {"share": 0.2, "at_most": 40}


def texts_of(rows, tokenizer):
    return [tokenizer.decode(row["input_ids"]) for row in rows]


def test_prepared_splits_by_document(file, letters, monkeypatch):
    monkeypatch.setattr(prepare, "DOCUMENTS", 7)
    corpus = Corpus((file,))
    folder = prepared(corpus, letters, 32, **OPTIONS)
    counts = json.loads((folder / COUNTS).read_text())
    train, kept = (read_part(folder, part) for part in (TRAIN, HELD_OUT))
    wanted = [x for x in corpus.documents() if not held_out(x, 0.2)]
    assert "".join(texts_of(train, letters)).replace("\n", "").startswith(wanted[0].strip())
    assert counts["documents"] == 60
    assert counts["held_out_rows"] == len(kept) == 40
    assert counts["train_rows"] == len(train)
    assert counts["train_tokens"] == lengths_of(train).sum()
    assert not set(texts_of(train, letters)) & set(texts_of(kept, letters))


def test_prepared_reads_once(file, letters, monkeypatch):
    first = prepared(Corpus((file,)), letters, 32, **OPTIONS)
    monkeypatch.setattr(prepare, "write_rows", None)
    assert prepared(Corpus((file,)), letters, 32, **OPTIONS) == first
    with pytest.raises(TypeError):  # other rows
        prepared(Corpus((file,)), letters, 40, **OPTIONS)


def test_nothing_is_left_of_what_failed(file, letters, cache):
    with file.open("ab") as broken:
        broken.write(b"\n\xff\n")
    with pytest.raises(ValueError, match=r"text.txt, line 120: .*--skip-bad-lines"):
        prepared(Corpus((file,)), letters, 32, **OPTIONS)
    assert list((cache / "nystromer").iterdir()) == []
    folder = prepared(Corpus((file,), skip_bad_lines=True), letters, 32, **OPTIONS)
    assert json.loads((folder / COUNTS).read_text())["bad_lines"] == 1


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        ("\n", 32, r"must fill at least one sequence of 32 tokens, got 0 in \d documents"),
        ("One. Two. 3", 32, "must fill at least one sequence of 32 tokens, got 11 in 1 documents"),
        ("One. Two. Three. Four.", 16, "Of 1 documents none .* was held out .* from 0.2"),
    ],
)
def test_too_little_text(tmp_path, letters, content, length, message):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        prepared(Corpus((path,)), letters, length, **OPTIONS)


def test_a_trained_tokenizer_is_kept(file, monkeypatch):
    corpus = Corpus((file,))
    first = corpus_tokenizer(corpus, "train", 60)
    monkeypatch.setattr(prepare, "train_tokenizer", None)
    assert corpus_tokenizer(corpus, "train", 60).get_vocab() == first.get_vocab()


def test_a_tokenizer_needs_its_special_tokens(file, words, tmp_path):
    words.save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=r"`--tokenizer` must have a mask_token, .*words has none"):
        corpus_tokenizer(Corpus((file,)), str(tmp_path / "words"), 60)


def test_a_stream_has_no_end_and_nothing_held_out(file, tmp_path, letters):
    folder = tmp_path / "data"
    folder.mkdir()
    found = list(Corpus((file,)).documents())
    for i in range(3):
        lines = "".join(json.dumps({"text": x}) + "\n" for x in found[i::3])
        (folder / f"train-{i}.jsonl").write_text(lines)
    corpus = Corpus(dataset=str(folder))
    stream = streamed(corpus, letters, 64, share=0.2, draw=Draw(letters))
    assert stream.num_shards == 3
    examples = list(islice(stream, 600))  # more than there are
    kept = prepared(corpus, letters, 64, **OPTIONS)
    assert json.loads((kept / COUNTS).read_text())["train_rows"] == 0
    evaluated = "".join(texts_of(read_part(kept, HELD_OUT), letters))
    trained = "".join(x for x in found if not held_out(x, 0.2))
    for x in examples:
        plain = x["input_ids"].where(x["labels"] == -100, x["labels"])
        segment = letters.decode(plain[1 : int(x["token_type_ids"].argmax()) - 1]).strip()
        assert segment in trained
        assert segment not in evaluated or len(segment) < 12
    assert len({tuple(x["input_ids"].tolist()) for x in examples}) == 600  # drawn anew
