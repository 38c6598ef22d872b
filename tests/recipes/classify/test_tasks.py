import json
import os
from pathlib import Path

import pytest

from nystromer.recipes.classify.tasks import TASKS, Columns, named_task
from nystromer.recipes.inputs.rows import BadLines

DATA = Path(os.environ.get("NYSTROMER_DATA", "../shared/data"))


@pytest.mark.parametrize(
    ("name", "splits", "text"),
    [
        ("sst2", {"train": 67_349, "dev": 872}, "hide new secretions from the parental units"),
        ("mrpc", {"train": 4_076, "test": 1_725}, "Amrozi accused his brother"),
        ("qnli", {"train": 3_805, "dev": 821}, "What do platyctenida use"),
        ("imdb", {"train": 25_000, "test": 20_000}, "Zero Day leads you to think"),
    ],
)
def test_a_named_task_reads_its_folder(name, splits, text):
    if not DATA.exists():
        pytest.skip(f"no {DATA}: set NYSTROMER_DATA")
    found = named_task(name, DATA, BadLines())
    assert {split: len(rows) for split, rows in found.splits.items()} == splits
    assert found.splits["train"][0][found.columns.text].startswith(text)


def write(folder, names, row):
    folder.mkdir(parents=True)
    for name in names:
        lines = ("\t".join(row), "\t".join(row.values()))
        (folder / f"{name}.tsv").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "files", "row", "columns"),
    [
        (
            "MNLI",
            ("train", "dev_matched", "dev_mismatched", "test_matched"),
            {"sentence1": 'He said "yes', "sentence2": "b", "gold_label": "neutral"},
            Columns("sentence1", "gold_label", "sentence2"),
        ),
        (
            "QQP",
            ("train", "dev", "test"),
            {"id": "1", "question1": "a", "question2": "b", "is_duplicate": "0"},
            Columns("question1", "is_duplicate", "question2"),
        ),
    ],
)
def test_the_files_of_glue_are_read(tmp_path, name, files, row, columns):
    write(tmp_path / name, files, row)
    found = named_task(name.lower(), tmp_path, BadLines())
    assert found.columns == columns
    assert list(found.splits) == [x for x in files if not x.startswith("test")]
    assert found.splits["train"] == [row]
    within = named_task(name.lower(), tmp_path / name, BadLines())
    assert within == found


def test_labels_have_names():
    assert all(len(task.labels) >= 2 for task in TASKS.values())
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")


def test_named_task_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"TASK must be one of sst2, .*, imdb, got 'sst3'"):
        named_task("sst3", None, BadLines())
    with pytest.raises(ValueError, match=r"`--data-dir` must hold a folder sst2 or SST-2 with a "):
        named_task("sst2", tmp_path, BadLines())
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a", "label": 1}))
    with pytest.raises(ValueError, match="sst2 needs the columns 'sentence', 'label', got 'text'"):
        named_task("sst2", tmp_path, BadLines())


def test_without_the_hub_a_folder_is_asked_for(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nyu-mll/glue/sst2 cannot be fetched .* pass --data-dir"):
        named_task("sst2", None, BadLines())
