import json

import pytest

from nystromer.recipes.pretrain.corpus import Corpus, held_out


def test_a_row_is_a_document_and_an_empty_line_ends_one(tmp_path):
    rows, text = tmp_path / "a.jsonl", tmp_path / "b.txt"
    rows.write_text("".join(json.dumps({"body": x}) + "\n" for x in ("One.\nTwo.", "Three.")))
    assert list(Corpus((rows,), text_column="body").documents()) == ["One.\nTwo.", "Three."]
    text.write_text("One.\nTwo.\n\nThree.\n")
    assert [x.strip() for x in Corpus((text, text)).documents()] == ["One.\nTwo.", "Three."] * 2


def test_a_text_without_empty_lines_is_cut(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word word\n" * 11_000)
    found = list(Corpus((path,)).documents())
    assert len(found) == 2
    assert "\n".join(found).split() == ["word"] * 22_000


def test_identity_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One.")
    before = Corpus((path,)).identity()
    assert before == Corpus((path,)).identity()
    path.write_text("One. Two.")
    assert before != Corpus((path,)).identity()


def test_held_out_goes_by_the_text():
    texts = [f"document {i}" for i in range(5000)]
    assert sum(held_out(x, 0.1) for x in texts) == pytest.approx(500, abs=60)
    assert {x for x in texts if held_out(x, 0.05)} < {x for x in texts if held_out(x, 0.1)}


def test_a_dataset_is_streamed(tmp_path):
    folder = tmp_path / "data"  # offline, a folder is what the Hub is online
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "One.", "id": 1}\n{"text": "Two.", "id": 2}\n')
    corpus = Corpus(dataset=str(folder))
    assert list(corpus.documents()) == ["One.", "Two."]
    with pytest.raises(ValueError, match="has no column 'body'; it has 'text', 'id'"):
        list(Corpus(dataset=str(folder), text_column="body").documents())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Name files to learn from, or a --dataset, got neither"),
        ({"files": ("a.txt",), "dataset": "b"}, "got both"),
    ],
)
def test_where_from_is_said_once(options, message):
    with pytest.raises(ValueError, match=message):
        Corpus(**options)


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"The dataset .*none cannot be opened: "):
        list(Corpus(dataset=str(tmp_path / "none")).documents())
