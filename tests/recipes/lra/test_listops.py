import statistics
from collections import Counter

import pytest

from nystromer.recipes.lra import listops
from nystromer.recipes.lra.listops import TOKENS, encode, evaluate, value

ROWS = {"train": 1300, "validation": 200, "test": 100}


def answer(words):
    """An evaluator of its own: recursive, on words; consumes one expression."""
    word = words.pop(0)
    if word.isdigit():
        return int(word)
    arguments = []
    while words[0] != "]":
        arguments.append(answer(words))
    words.pop(0)
    if word == "[MED":
        return int(statistics.median(arguments))
    return {"[MIN": min, "[MAX": max, "[SM": lambda x: sum(x) % 10}[word](arguments)


def original_notation(words):
    """Each list as nested pairs: ( ( ( [MAX 2 ) 9 ) ] )"""
    word = words.pop(0)
    if word.isdigit():
        return word
    text = word
    while words[0] != "]":
        text = f"( {text} {original_notation(words)} )"
    words.pop(0)
    return f"( {text} ] )"


@pytest.fixture(scope="module")
def made():
    return listops.generate(ROWS, seed=3, processes=1)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("( ( ( [MAX 2 ) 9 ) ] )", 9),
        ("( ( ( [SM 8 ) 7 ) ] )", 5),
        ("( ( ( ( ( [MED 1 ) 9 ) 2 ) 4 ) ] )", 3),
        ("( ( ( ( [MIN 5 ) ( ( ( [MED 1 ) 4 ) ] ) ) 7 ) ] )", 2),
        ("[MAX 4 [MED 1 9 [MIN 3 5 ] ] [SM 8 7 ] ]", 5),
        ("7", 7),
    ],
)
def test_evaluate_reads_the_original_notation(source, expected):
    assert evaluate(source) == expected


def test_labels_agree_with_an_independent_evaluator(made):
    for split in made.splits.values():
        for ids, label in zip(split.documents, split.labels, strict=True):
            words = [TOKENS[i] for i in ids]
            assert answer(words.copy()) == label
    assert evaluate(original_notation(words)) == label


def test_rows_are_as_specified(made):
    for name, split in made.splits.items():
        assert len(split.labels) == ROWS[name]
    rows = [list(x) for split in made.splits.values() for x in split.documents]
    assert all(500 < len(row) < 2000 for row in rows)
    for row in rows:
        depth, counts = 1, [0]  # a value at the top has depth 1
        for token in row:
            if token == listops.CLOSE:
                assert 2 <= counts.pop() <= 10
                depth -= 1
            else:
                counts[-1] += 1
                assert depth <= 10
                if token >= 10:
                    depth += 1
                    counts.append(0)
    assert {token for row in rows for token in row} == set(range(15))
    assert len({tuple(row) for row in rows}) == len(rows)
    shares = Counter(made.splits["train"].labels)
    assert set(shares) == set(range(10))
    assert max(shares.values()) < 0.25 * ROWS["train"]


def test_rows_depend_on_the_seed_alone(made):
    again = listops.generate({"train": 1300}, seed=3, processes=2)
    other = listops.generate({"train": 1000}, seed=4, processes=1)
    first = made.splits["train"].documents
    assert all((a == b).all() for a, b in zip(again.splits["train"].documents, first, strict=True))
    assert any(
        list(a) != list(b) for a, b in zip(other.splits["train"].documents, first, strict=False)
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("( ( ( [MAX 2 ) 9 ) ]", "close every parenthesis, got 3 opened and 2 closed"),
        ("[MAX 2 9", "one whole expression, got 1 lists that are not closed"),
        ("[MAX 2 [AVG 3 ] ]", r"hold the tokens 0 1 .* only, got '\[AVG'"),
        ("[MAX ]", "close only lists that hold something"),
        ("3 ]", "close only lists that hold something"),
        ("3 4", "one whole expression, got 0 lists that are not closed and 2 values"),
        ("", "one whole expression"),
    ],
)
def test_evaluate_refuses(source, message):
    with pytest.raises(ValueError, match=f"A ListOps row must .*{message}"):
        evaluate(source)


def original_files(folder, made, change=lambda text: text):
    for split, name in zip(made.splits.values(), listops.FILES.values(), strict=True):
        rows = zip(split.documents[:20], split.labels[:20], strict=True)
        lines = [f"{original_notation([TOKENS[i] for i in x])}\t{y}\r\n" for x, y in rows]
        (folder / name).write_text(change("Source\tTarget\r\n" + "".join(lines)), newline="")
    return [folder / name for name in listops.FILES.values()]


def test_read_reads_the_original_files(tmp_path, made):
    found = listops.read(original_files(tmp_path, made))
    for name, split in found.splits.items():
        assert split.labels == made.splits[name].labels[:20]
        assert all(
            (a == b).all()
            for a, b in zip(split.documents, made.splits[name].documents, strict=False)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-40], "basic_train.tsv must end in a whole line, but is cut short"),
        (lambda text: text[:-40] + "\n", r"basic_train.tsv, line 21: A ListOps row must"),
        (lambda text: text[:-3] + "12\r\n", "line 21: the target must be the value ., got '.*12'"),
        (lambda text: text[:-3] + "\r\n", "line 21: the target must be the value ., got ''"),
        (lambda text: text[:15], "basic_train.tsv must hold rows, got none"),
        (lambda text: "", "basic_train.tsv must end in a whole line"),
    ],
)
def test_read_refuses_damaged_files(tmp_path, made, change, message):
    with pytest.raises(ValueError, match=message):
        listops.read(original_files(tmp_path, made, change))


def test_value_takes_ids():
    assert value(encode("[SM 9 9 9 ]")) == 7
