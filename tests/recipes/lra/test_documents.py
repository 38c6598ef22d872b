"""Text, and the tasks of two documents."""

import json
from collections import Counter

import pytest

from nystromer.recipes.lra import retrieval, text


def reviews(folder, count=40, movies=5, **change):
    """imdb/train.jsonl and test.jsonl."""
    (folder / "imdb").mkdir()
    for split in ("train", "test"):
        rows = [
            {
                "text": f"{split} {i} " + "é" * (i % 3 * 750),
                "label": i // movies % 2,
                "movie": f"m{i % movies}",
            }
            for i in range(count)
        ]
        rows[3] |= change
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "imdb" / f"{split}.jsonl").write_text(lines)
    return folder


def test_text_is_bytes_cut_at_the_limit_and_said(tmp_path):
    found = text.read(text.source(reviews(tmp_path, 60)))
    assert {name: len(x.labels) for name, x in found.splits.items()} == {
        "train": 54, "validation": 6, "test": 60,
    }  # fmt: skip
    assert Counter(found.splits["validation"].labels) == {0: 3, 1: 3}  # stratified
    documents = found.splits["test"].documents
    assert bytes(documents[0]).decode() == "test 0 "
    assert max(map(len, documents)) == 3000 + len("test 59 ")
    found = text.read(text.source(tmp_path), seed=1)
    assert found.splits["train"].labels != text.read(text.source(tmp_path)).splits["train"].labels


def test_text_says_how_many_were_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LIMIT", 1000)
    found = text.read(text.source(reviews(tmp_path)))
    assert found.notes[-1] == "26 of 40 test reviews are longer than 1,000 and were cut there."
    assert max(map(len, found.splits["test"].documents)) == 1000


def test_text_reads_the_original_archive(tmp_path):
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            (tmp_path / "aclImdb" / split / name).mkdir(parents=True)
            for i in range(10):
                (tmp_path / "aclImdb" / split / name / f"{i}_1.txt").write_text(f"{name} {i}")
    found = text.read(text.source(tmp_path)).splits
    words = [bytes(x).decode().split()[0] for x in found["train"].documents]
    assert [{"neg": 0, "pos": 1}[word] for word in words] == found["train"].labels
    assert len(found["validation"].labels) == 2
    (tmp_path / "aclImdb" / "test" / "pos").joinpath("x.txt").write_text("more")
    for path in (tmp_path / "aclImdb" / "test" / "neg").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"test must hold .txt files in neg and pos, got 11"):
        text.read(text.source(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"train.jsonl, row 4: a label must be 0 or 1, got 2"),
        ({"label": "good"}, r"a label must be 0 or 1, got 'good'"),
        ({"text": None}, "no value in the column 'text'"),
    ],
)
def test_text_refuses(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        text.read(text.source(reviews(tmp_path, **change)))


def test_text_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"must hold imdb/train.jsonl and test.jsonl"):
        text.source(tmp_path)


def test_same_movie_is_balanced_and_judgements_tell_nothing(tmp_path):
    paths = text.source(reviews(tmp_path, 400, movies=40))
    sizes = {"train": 200, "validation": 20, "test": 100}
    found = retrieval.same_movie(paths, sizes).splits
    assert {name: len(x.labels) for name, x in found.items()} == sizes
    films = {}
    for name, split in found.items():
        assert Counter(split.labels) == {0: sizes[name] // 2, 1: sizes[name] // 2}
        numbers = [
            tuple(int(bytes(x).split()[1]) for x in pair)
            for pair in zip(split.documents, split.others, strict=True)
        ]
        for (a, b), label in zip(numbers, split.labels, strict=True):
            assert (a % 40 == b % 40) == label
            assert a != b
        alike = [[a // 40 % 2 == b // 40 % 2 for a, b in numbers[i::2]] for i in (0, 1)]
        assert alike[0] == alike[1]
        films[name] = {i % 40 for pair in numbers for i in pair}
        joined = [
            frozenset(pair) for pair, label in zip(numbers, split.labels, strict=False) if label
        ]
        assert len(set(joined)) == len(joined)
    assert not films["train"] & films["validation"]
    assert retrieval.same_movie(paths, sizes).splits["test"].labels == found["test"].labels


def test_same_movie_takes_as_many_pairs_as_there_are(tmp_path):
    paths = text.source(reviews(tmp_path, 80, movies=20))
    found = retrieval.same_movie(paths, {"train": 10**6, "validation": 4, "test": 4}).splits
    assert len(found["train"].labels) == 18 * 6 * 2  # films, pairs of four reviews


def test_same_movie_refuses_films_without_a_choice(tmp_path):
    with pytest.raises(ValueError, match="at least two films with several reviews, one of them"):
        retrieval.same_movie(text.source(reviews(tmp_path, movies=1)))


def original(folder, change=lambda line: line):
    lines = [f"{float(i % 2)}\ta{i}\tb{i}\tfirst {i}\tsecond {'x' * 5000}\n" for i in range(6)]
    for name in retrieval.FILES.values():
        (folder / name).write_text("".join([*lines[:5], change(lines[5])]))
    return folder


def test_retrieval_reads_the_original_files(tmp_path):
    found = retrieval.read(retrieval.source(original(tmp_path)))
    train = found.splits["train"]
    assert train.labels == [0, 1, 0, 1, 0, 1]
    assert bytes(train.documents[2]) == b"first 2"
    assert [len(x) for x in train.others] == [4000] * 6
    assert found.notes[0] == (
        "6 of 6 second train documents are longer than 4,000 and were cut there."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:-9], "train.tsv must end in a whole line, but is cut short"),
        (lambda line: line[:9] + "\n", "line 6 must hold 5 fields with tabs between, got 3"),
        (lambda line: "2" + line[1:], "line 6: a label must be 0 or 1, got '2.0'"),
    ],
)
def test_retrieval_refuses_damaged_files(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        retrieval.read(retrieval.source(original(tmp_path, change)))


def test_retrieval_names_the_missing_file_and_the_stand_in(tmp_path):
    with pytest.raises(ValueError, match=r"new_aan_pairs.train.tsv, got .* imdb-same-movie stands"):
        retrieval.source(tmp_path)
