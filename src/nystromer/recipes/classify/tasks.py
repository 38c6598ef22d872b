"""Where the rows of a classifier come from: the user's files, or a task that has a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nystromer.recipes.files.errors import reason
from nystromer.recipes.inputs import rows
from nystromer.recipes.inputs.formats import Row
from nystromer.recipes.inputs.lines import BadLines


@dataclass(frozen=True)
class Columns:
    """Holds the names of the columns: a text, its label, the second text in a task of pairs."""

    text: str = "text"
    label: str = "label"
    pair: str | None = None

    @property
    def texts(self) -> dict[str, rows.Check]:
        """Returns {column: what must be in it} of the texts."""
        return {name: rows.text for name in (self.text, self.pair) if name is not None}

    @property
    def checks(self) -> dict[str, rows.Check]:
        """Returns {column: what must be in it} of texts and label."""
        return {**self.texts, self.label: rows.label}


@dataclass(frozen=True)
class NamedTask:
    """Says where the rows of a task with a name come from.

    Args:
        hub: Data set and configuration on the Hub.
        splits: {what it is for: its name on the Hub}; what is not for training or "dev" is looked
            at once, at the end.
        folders: What its folder may be called in `--data-dir`.
        columns: What the columns may be called.
        labels: Their names, in the order of the numbers that the files have.
    """

    hub: tuple[str, ...]
    splits: Mapping[str, str]
    folders: tuple[str, ...]
    columns: tuple[Columns, ...]
    labels: tuple[str, ...]


GLUE = "nyu-mll/glue"
DEV = {"train": "train", "dev": "validation"}
MATCHED = {"dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
TASKS = {
    "sst2": NamedTask(
        (GLUE, "sst2"),
        DEV,
        ("sst2", "SST-2"),
        (Columns("sentence"),),
        ("negative", "positive"),
    ),
    "mrpc": NamedTask(
        (GLUE, "mrpc"),
        DEV,
        ("mrpc", "MRPC"),
        (Columns("sentence1", pair="sentence2"), Columns("#1 String", "Quality", "#2 String")),
        ("different", "paraphrase"),
    ),
    "qnli": NamedTask(
        (GLUE, "qnli"),
        DEV,
        ("qnli", "QNLI", "qnli_small"),
        (Columns("question", pair="sentence"),),
        ("entailment", "not_entailment"),
    ),
    "qqp": NamedTask(
        (GLUE, "qqp"),
        DEV,
        ("qqp", "QQP"),
        (
            Columns("question1", pair="question2"),
            Columns("question1", "is_duplicate", "question2"),
        ),
        ("different", "duplicate"),
    ),
    "mnli": NamedTask(
        (GLUE, "mnli"),
        {"train": "train", **MATCHED},
        ("mnli", "MNLI"),
        (
            Columns("premise", pair="hypothesis"),
            Columns("sentence1", "gold_label", "sentence2"),
            Columns("sentence1", pair="sentence2"),
        ),
        ("entailment", "neutral", "contradiction"),
    ),
    "imdb": NamedTask(
        ("stanfordnlp/imdb",),
        {"train": "train", "test": "test"},
        ("imdb", "IMDB"),
        (Columns("text"),),
        ("negative", "positive"),
    ),
}
STEMS = {  # of the files in --data-dir
    "train": ("train",),
    "dev": ("dev", "validation"),
    "test": ("test",),
    "dev_matched": ("dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
}


@dataclass(frozen=True)
class Source:
    """Holds the rows to train on, and those to look at.

    Args:
        splits: {"train": rows, "dev": rows, "test": rows, ...}, of which only "train" must be
            there.
        columns: Of the rows.
        label_names: {a label as the rows have it: what to call it}.
    """

    splits: dict[str, list[Row]]
    columns: Columns
    label_names: Mapping[str, str]


def own_files(files: Mapping[str, Path | None], columns: Columns, bad_lines: BadLines) -> Source:
    """Reads the rows of the user's files.

    Raises:
        ValueError: As `read_rows`.
    """
    splits = {
        split: list(rows.read_rows(path, columns.checks, bad_lines))
        for split, path in files.items()
        if path is not None
    }
    return Source(splits, columns, {})


def named_task(name: str, data_dir: Path | None, bad_lines: BadLines) -> Source:
    """Reads the rows of a task of `TASKS` from files, or from the Hub without a folder.

    Raises:
        ValueError: If there is no such task or no such files, or as `read_rows`.
    """
    if name not in TASKS:
        raise ValueError(f"TASK must be one of {', '.join(TASKS)}, got {name!r}.")
    task = TASKS[name]
    files = {} if data_dir is None else task_files(name, data_dir)
    data = hub_data(task) if data_dir is None else {}
    first = next(iter(data["train"])) if data else next(rows.read_rows(files["train"]))
    found = [columns for columns in task.columns if all(x in first for x in columns.checks)]
    if not found:
        wanted = " or ".join(", ".join(map(repr, columns.checks)) for columns in task.columns)
        raise ValueError(f"{name} needs the columns {wanted}, got {', '.join(map(repr, first))}.")
    labels = {str(i): label for i, label in enumerate(task.labels)}
    if data_dir is not None:
        return replace(own_files(files, found[0], bad_lines), label_names=labels)
    place = "/".join(task.hub)
    splits = {
        split: list(rows.checked(enumerate(x, 1), f"{place}, {split}", found[0].checks, bad_lines))
        for split, x in data.items()
    }
    return Source(splits, found[0], labels)


def hub_data(task: NamedTask) -> dict[str, Any]:
    """Fetches the data of a task from the Hub, by split."""
    import datasets

    try:
        return {
            split: datasets.load_dataset(*task.hub, split=name)
            for split, name in task.splits.items()
        }
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{'/'.join(task.hub)} cannot be fetched from the Hub ({reason(error)}); "
            "pass --data-dir with a folder of its files."
        ) from error


def task_files(name: str, data_dir: Path) -> dict[str, Path]:
    """Finds the files of a task: training, and the development files if there are such, else the
    test file."""
    task = TASKS[name]
    for folder in (*(data_dir / x for x in task.folders), data_dir):
        found = {split: first_file(folder, stems) for split, stems in STEMS.items()}
        if found["train"] is not None:
            wanted = [split for split in task.splits if split.startswith("dev") and found[split]]
            splits = ["train", *(wanted or [x for x in ("dev", "test") if found[x]][:1])]
            return {x: path for x in splits if (path := found[x]) is not None}
    raise ValueError(
        f"`--data-dir` must hold a folder {' or '.join(task.folders)} with a file named train "
        f"(.jsonl, .csv, .tsv or .parquet, also compressed), got {data_dir}."
    )


def first_file(folder: Path, stems: Iterable[str]) -> Path | None:
    """Returns the first file of one of those names, whatever its suffix."""
    return next((path for stem in stems for path in sorted(folder.glob(f"{stem}.*"))), None)
