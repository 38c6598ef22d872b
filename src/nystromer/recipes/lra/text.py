"""Makes the task Text: does a film review praise? IMDB as at most 4,096 bytes, two classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nystromer.recipes.files.errors import reason
from nystromer.recipes.inputs.rows import label, read_rows, text
from nystromer.recipes.lra.store import Prepared, Split, fit, from_hub, hold_out

HUB = "stanfordnlp/imdb"
LIMIT = 4096
HELD_OUT = 0.1  # of the training rows, for validation; the benchmark validates on the test rows
SPLITS = ("train", "test")
FOLDERS = {"neg": 0, "pos": 1}  # of the original archive
ENDINGS = (".jsonl.xz", ".jsonl.gz", ".jsonl", ".csv", ".parquet")
Reviews = list[tuple[str, int]]


def source(data_dir: Path) -> list[Path]:
    """Finds one file for each of train and test (columns text and label), or aclImdb's folders.

    Raises:
        ValueError: If there are neither.
    """
    for folder in (data_dir / "imdb", data_dir):
        for ending in ENDINGS:
            files = [folder / f"{split}{ending}" for split in SPLITS]
            if all(path.is_file() for path in files):
                return files
    for folder in (data_dir / "aclImdb", data_dir):
        if all((folder / split / name).is_dir() for split in SPLITS for name in FOLDERS):
            return [folder / split for split in SPLITS]
    raise ValueError(
        f"`--data-dir` must hold imdb/train.jsonl and test.jsonl (or .csv, .parquet, compressed), "
        f"or aclImdb, got {data_dir}; without --data-dir they come from the Hub."
    )


def read(paths: Sequence[Path], seed: int = 0) -> Prepared:
    """Reads the splits from what `source` found; a tenth of the training rows validates.

    Raises:
        ValueError: If a file cannot be read, lacks a column, or a label is neither 0 nor 1.
    """
    train, test = (from_folder(path) if path.is_dir() else from_file(path) for path in paths)
    return splits(train, test, seed)


def download(seed: int = 0) -> Prepared:
    """Reads the same from the Hub."""
    found = [from_hub(HUB, split) for split in SPLITS]
    train, test = (list(zip(rows["text"], rows["label"], strict=True)) for rows in found)
    return splits(train, test, seed)


def from_file(path: Path) -> Reviews:
    """Returns the reviews in a file of rows."""
    columns = {"text": text, "label": label}
    return [
        (row["text"], judgement(row["label"], f"{path}, row {number}"))
        for number, row in enumerate(read_rows(path, columns), 1)
    ]


def judgement(found: object, place: str) -> int:
    """Returns 0 or 1.

    Raises:
        ValueError: If the label is neither.
    """
    if str(found) not in ("0", "1"):
        raise ValueError(f"{place}: a label must be 0 or 1, got {found!r}.")
    return int(str(found))


def from_folder(folder: Path) -> Reviews:
    """Returns the reviews in the folders of the original archive."""
    found = [
        (read_review(path), judged)
        for name, judged in FOLDERS.items()
        for path in sorted((folder / name).glob("*.txt"))
    ]
    if {judged for _, judged in found} != {0, 1}:
        raise ValueError(f"{folder} must hold .txt files in neg and pos, got {len(found)}.")
    return found


def read_review(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        ValueError: If it is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path} must be a text in UTF-8, got {reason(error)}.") from error


def splits(train: Reviews, test: Reviews, seed: int) -> Prepared:
    """Returns the splits; a tenth of the training rows validates."""
    rest, held = hold_out([judged for _, judged in train], HELD_OUT, seed)
    parts = {
        "train": [train[i] for i in rest],
        "validation": [train[i] for i in held],
        "test": test,
    }
    made, notes = {}, []
    for name, reviews in parts.items():
        documents, cut = fit((review.encode() for review, _ in reviews), LIMIT, f"{name} reviews")
        made[name] = Split(documents, [judged for _, judged in reviews])
        notes += cut
    return Prepared(made, notes)
