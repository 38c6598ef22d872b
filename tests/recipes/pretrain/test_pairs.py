from itertools import chain

import numpy as np
import pytest
import torch

from nystromer.recipes.inputs.tokenizers import load_tokenizer
from nystromer.recipes.pretrain.pairs import SENTENCE, Draw, Pad, rows_of

TEXT = "One two. Three four five! Six?\nSeven. " + "Eight nine. " * 5


def test_sentences_lose_nothing():
    assert SENTENCE.split("A b. C\nd... 3.5 e! 中。文") == [
        "A b. ",
        "C\n",
        "d... ",
        "3.5 e! ",
        "中。",
        "文",
    ]


def test_rows_hold_whole_sentences_of_one_document(letters):
    rows = list(rows_of([TEXT, "Alone.", "", TEXT], letters, 40))
    texts = [letters.decode(row["input_ids"]) for row in rows]
    assert texts[0] == "One two. Three four five! Six?\n"
    assert "".join(texts) == 2 * TEXT  # in order
    for row, text in zip(rows, texts, strict=True):
        assert len(text) <= 37
        assert row["starts"] == [i for i, x in enumerate(text) if x.isupper()]
        assert len(row["starts"]) >= 2


def test_a_sentence_beyond_half_a_row_is_cut(letters):
    rows = list(rows_of(["x" * 70 + ". Ten."], letters, 43))
    assert [(len(x["input_ids"]), x["starts"]) for x in rows] == [
        (40, [0, 10, 20, 30]),
        (36, [0, 10, 20, 30, 32]),
    ]


def test_dna_has_segments_too():
    row, *_ = rows_of(["ACGT" * 20], load_tokenizer("dna"), 43)
    assert (len(row["input_ids"]), row["starts"]) == (40, [0, 10, 20, 30])


def test_draw_gives_two_segments_in_either_order(letters):
    row, *_ = rows_of([TEXT], letters, 64)
    draw = Draw(letters)
    text, orders, cuts = letters.decode(row["input_ids"]), [], set()
    for key in range(200):
        x = draw(row, key)
        ids = torch.where(x["labels"] == -100, x["input_ids"], x["labels"])  # before the masks
        second = int(x["token_type_ids"].argmax())
        assert [ids[0], ids[second - 1], ids[-1]] == [257, 258, 258]
        assert x["token_type_ids"][second:].all()
        parts = [letters.decode(ids[1 : second - 1]), letters.decode(ids[second:-1])]
        swapped = int(x["sentence_order_label"])
        assert "".join(parts[:: -1 if swapped else 1]) == text
        orders.append(swapped)
        cuts.add(len(parts[swapped]))
    assert cuts == set(row["starts"][1:])
    assert 70 < sum(orders) < 130


def test_draw_asks_15_percent_and_hides_80_of_them(letters):
    row = {"input_ids": [97] * 500 + [98] * 500, "starts": [0, 500]}
    draw = Draw(letters, seed=3)
    rows = [draw(row, key) for key in range(100)]
    ids, labels = (torch.stack([x[name] for x in rows]) for name in ("input_ids", "labels"))
    asked = labels != -100
    assert not asked[:, [0, 501, -1]].any()  # never [CLS] or [SEP]
    assert float(asked.float().mean()) == pytest.approx(0.15, abs=0.005)
    hidden, same = ids[asked] == letters.mask_token_id, ids[asked] == labels[asked]
    assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float(same.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert len(ids[asked][~hidden & ~same].unique()) > 200  # any word
    assert set(ids[~asked].tolist()) == {97, 98, 257, 258}


def test_draw_depends_on_seed_and_key_alone(letters):
    row, *_ = rows_of([TEXT], letters, 64)
    arrays = {name: np.array(x, np.uint16) for name, x in row.items()}
    first = Draw(letters, 1)(row, 5)
    draw = Draw(letters, 1)
    draw(row, 4)
    assert all(torch.equal(x, draw(arrays, 5)[name]) for name, x in first.items())
    for other in (draw(row, 6), Draw(letters, 2)(row, 5)):
        assert not torch.equal(first["input_ids"], other["input_ids"])


def test_pad_makes_a_batch(letters):
    draw = Draw(letters)
    rows = list(rows_of(["One. Two.", "Three four. Five six."], letters, 64))
    examples = [draw(row, 0) for row in rows]
    batch = Pad(letters)(examples)
    lengths = [len(x["input_ids"]) for x in examples]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert {tuple(x.shape) for x in batch.values()} == {(2, max(lengths)), (2,)}
    short = lengths[0]
    assert (batch["input_ids"][0, short:] == letters.pad_token_id).all()
    assert (batch["labels"][0, short:] == -100).all()
    assert set(chain(*batch["token_type_ids"].tolist())) == {0, 1}
