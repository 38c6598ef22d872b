from collections import Counter

import numpy as np
import pytest

from nystromer.recipes.classify.examples import (
    LaterStarts,
    by_length,
    check_labels,
    collator,
    encode,
    label_numbers,
    split_off,
)
from nystromer.recipes.classify.tasks import Columns
from nystromer.recipes.inputs.tokenizers import load_tokenizer

ROWS = [{"a": "x" * n, "b": "yy", "label": n % 2} for n in (3, 9, 5)]


def test_encode_cuts_and_numbers():
    found = encode(load_tokenizer("bytes"), ROWS, Columns("a"), 7, {"1": 0})
    assert [example["input_ids"].tolist() for example in found] == [
        [257, *[120] * n, 258] for n in (3, 5, 5)
    ]
    assert [example["labels"] for example in found] == [0, 0, 0]


def test_encode_cuts_the_longer_text_of_a_pair():
    found = encode(load_tokenizer("bytes"), ROWS, Columns("a", pair="b"), 9)
    assert found[1]["input_ids"].tolist() == [257, *[120] * 4, 258, 121, 121, 258]
    assert found[1]["token_type_ids"].tolist() == [0] * 6 + [1] * 3
    assert "labels" not in found[1]


def test_texts_start_later_in_every_epoch_by_the_seed():
    text = "".join(map(chr, range(32, 112)))
    examples = encode(
        load_tokenizer("bytes"), [{"a": text, "l": 1}], Columns("a", "l"), 90, {"1": 3}
    )
    rows, again = (LaterStarts(examples * 200, 0.25, 82, seed=5) for _ in range(2))
    starts = set()
    for epoch in range(2):
        rows.epoch = again.epoch = epoch
        for i, row in enumerate(rows):
            ids = row["input_ids"].tolist()
            assert (ids[0], ids[-1], row["labels"]) == (257, 258, 3)
            assert bytes(ids[1:-1]).decode() == text[82 - len(ids) :]
            assert {len(x) for name, x in row.items() if name != "labels"} == {len(ids)}
            assert again[i]["input_ids"].tolist() == ids
            starts.add((epoch, 82 - len(ids)))
            if i == 199:
                break
    assert {start for _, start in starts} == set(range(21))  # a quarter of 80
    draws = [[len(rows[i]["input_ids"]) for i in range(200)]]
    for rows.epoch, rows.seed in ((0, 5), (1, 6)):
        draws.append([len(rows[i]["input_ids"]) for i in range(200)])
    assert len({tuple(draw) for draw in draws}) == 3
    whole = LaterStarts(examples, 0.0, 82, seed=0)[0]
    assert whole["input_ids"].tolist() == examples[0]["input_ids"].tolist()
    assert whole["input_ids"].dtype == examples[0]["input_ids"].dtype


def test_texts_that_start_later_are_cut_behind():
    text = "".join(map(chr, range(32, 112)))
    row = {"a": text, "label": 1}
    examples = encode(load_tokenizer("bytes"), [row], Columns("a"), 90, {"1": 3})
    rows = LaterStarts(examples * 100, 0.25, 62, seed=0)
    starts = set()
    for i in range(100):
        ids = rows[i]["input_ids"].tolist()
        start = text.index(chr(ids[1]))
        assert bytes(ids[1:-1]).decode() == text[start : start + 60]
        assert (ids[0], ids[-1], len(rows[i]["attention_mask"])) == (257, 258, 62)
        starts.add(start)
    assert starts == set(range(21))


def test_batches_are_padded_in_steps_of_64():
    tokenizer = load_tokenizer("bytes")
    tokenizer.model_max_length = 128
    examples = encode(tokenizer, ROWS, Columns("a"), 128, {"1": 1})
    batch = collator(tokenizer)(examples)
    assert batch["input_ids"].shape == (3, 64)
    assert batch["attention_mask"].sum(1).tolist() == [5, 11, 7]
    assert batch["labels"].tolist() == [1, 1, 1]
    tokenizer.model_max_length = 50  # positions that a step of 64 would go beyond
    assert collator(tokenizer)(examples)["input_ids"].shape == (3, 11)


def test_by_length_begins_with_the_longest():
    assert by_length([{"input_ids": np.zeros(n)} for n in (3, 9, 5)]) == [1, 2, 0]


def test_labels_are_in_order_and_one_label_however_written():
    rows = [{"label": x} for x in (10, "2", 2.0, 2)]
    assert label_numbers(rows, "label") == {"2": 0, "10": 1}
    assert list(label_numbers([{"label": x} for x in ("b", "a", 1)], "label")) == ["1", "a", "b"]
    for given, ordered in (([1, -1], "-1 1"), ([10.5, 9.5], "9.5 10.5"), (["1e1", "9"], "9 1e1")):
        assert list(label_numbers([{"label": x} for x in given], "label")) == ordered.split()


def test_split_off_keeps_the_shares_of_labels_and_depends_on_the_seed():
    rows = [{"label": "rare" if i < 20 else "often", "i": i} for i in range(200)]
    rest, held = split_off(rows, "label")
    assert Counter(row["label"] for row in held) == {"rare": 2, "often": 18}
    assert sorted(row["i"] for row in rest + held) == list(range(200))
    assert split_off(rows, "label")[1] == held
    assert split_off(rows, "label", seed=1)[1] != held
    assert len(split_off(rows, "label", most=4)[1]) == 5  # one of the rare


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: encode(load_tokenizer("dna"), [{"a": "Hello"}], Columns("a"), 9),
            "`--tokenizer dna` is for A, C, G, T and N, got 'HELLO'",
        ),
        (
            lambda: label_numbers([{"label": None}], "label"),
            "The column 'label' must hold a label, got None",
        ),
        *(
            (lambda x=x: label_numbers([{"label": x}, {"label": 1}], "label"), "must hold a label")
            for x in ([0, 1], float("nan"), float("inf"), "nan", "", {}, 10**400)
        ),
        (
            lambda: label_numbers([{"label": 1}] * 9, "label"),
            "Training needs rows of at least two labels, got '1' alone in the column 'label'",
        ),
        (
            lambda: label_numbers([{"label": i} for i in range(101)], "label"),
            "must hold labels of classes, got 101 different values in 101 rows",
        ),
        (
            lambda: check_labels([{"label": 3}], "label", {"1": 0, "2": 1}, "dev"),
            "The dev rows hold the label '3', which training never shows; it has '1', '2'",
        ),
    ],
)
def test_bad_rows_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
