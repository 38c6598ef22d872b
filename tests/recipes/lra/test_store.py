import json

import numpy as np
import pytest

from nystromer.recipes.lra import data, store
from nystromer.recipes.lra.store import Prepared, Split, stored


def prepared():
    documents = [np.arange(n, dtype=np.uint8) for n in (3, 0, 200)]
    return Prepared({"train": Split(documents, [0, 1, 0], documents[::-1])}, ["A note."])


def test_a_data_set_is_made_once_and_known_by_what_it_is_made_from(tmp_path):
    made = []

    def make():
        made.append(1)
        return prepared()

    rows, about = stored("x", tmp_path, {"seed": 0}, make)
    again, same = stored("x", tmp_path, {"seed": 0}, make)
    _, other = stored("x", tmp_path, {"seed": 1}, make)
    assert len(made) == 2
    assert about == same
    assert about["fingerprint"] != other["fingerprint"]
    assert about["notes"] == ["A note."]
    assert about["rows"] == {"train": 3}
    assert again["train"][2]["input_ids"] == list(range(200))
    assert again["train"][2]["other_ids"] == [0, 1, 2]
    assert rows["train"]["labels"][:] == [0, 1, 0]
    assert rows["train"].features["input_ids"].feature.dtype == "uint8"


def test_a_data_set_that_is_cut_is_made_anew(tmp_path):
    stored("x", tmp_path, {}, prepared)
    (folder,) = tmp_path.iterdir()
    whole = {path: path.read_bytes() for path in folder.rglob("*.arrow")}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    rows, about = stored("x", tmp_path, {}, prepared)
    assert rows["train"]["labels"][:] == [0, 1, 0]
    assert about["content"] == stored("x", tmp_path / "other", {"seed": 1}, prepared)[1]["content"]
    assert {path: path.read_bytes() for path in folder.rglob("*.arrow")} == whole


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ABOUT", "no/such/folder")
    with pytest.raises(FileNotFoundError):
        stored("x", tmp_path, {}, prepared)
    assert list(tmp_path.iterdir()) == []


def test_two_that_make_the_same_at_a_time_agree(tmp_path):
    def make_while_another_does():
        stored("x", tmp_path, {}, prepared)
        return prepared()

    rows, _ = stored("x", tmp_path, {}, make_while_another_does)
    assert len(rows["train"]) == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_a_changed_file_is_read_again(tmp_path, data_dirs):
    path = data_dirs["text"] / "imdb" / "train.jsonl"
    content = path.read_text()
    counts = []
    try:
        for extra in ("", json.dumps({"text": "new", "label": 1}) + "\n"):
            path.write_text(content + extra)
            found, _ = data.load("text", data_dirs["text"], cache=tmp_path)
            counts.append(len(found["train"]) + len(found["validation"]))
    finally:
        path.write_text(content)
    assert counts == [200, 201]


def test_rows_are_limited(cache, data_dirs):
    found, _ = data.load("image", data_dirs["image"], cache=cache, rows=7, eval_rows=3)
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 7, "validation": 3, "test": 3,
    }  # fmt: skip


@pytest.mark.parametrize("task", ["text", "image"])
def test_without_the_hub_a_folder_is_asked_for(task, cache, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach it.\nMore.")

    monkeypatch.setattr(store, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"from the Hub \(Couldn't reach it\); pass --data-dir"):
        data.load(task, cache=cache)


def test_original_files_that_are_missing_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"hold basic_train.tsv, .*without --data-dir the rows"):
        data.load("listops", tmp_path, cache=tmp_path)
    with pytest.raises(ValueError, match="`--data-dir` must be a folder, got"):
        data.load("listops", tmp_path / "none", cache=tmp_path)
