"""Which slides are for training, validation and test: CLAM's, TransMIL's and torchmil's files.

CLAM: splits_K.csv (columns train, val, test of names) or splits_K_bool.csv (a line a slide).
TransMIL: foldK.csv (train, train_label, ...). torchmil: splits.csv (bag_name, split).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nystromer.mil.columns import BAG, column, find, read_table
from nystromer.mil.ids import slide_id

PARTS = ("train", "val", "test")
FILES = re.compile(r"splits_\d+(_bool)?\.csv|fold_?\d+\.csv|splits?\.csv", re.IGNORECASE)


@dataclass(frozen=True)
class Split:
    """
    Args:
        name: Of the file it is from.
        parts: The slides of "train", "val" and "test", names without suffix.
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]

    def leaks(self, patients: Mapping[str, str | None]) -> dict[str, list[str]]:
        """Returns the patients with slides in two parts, or slides that stand in two themselves.

        Args:
            patients: The patient of every slide; a slide without one is its own patient.

        Returns:
            The parts of each such patient.
        """
        where: dict[str, list[str]] = {}
        for part, slides in self.parts.items():
            for whose in {patients.get(slide) or slide for slide in slides}:
                where.setdefault(whose, []).append(part)
        return {whose: parts for whose, parts in sorted(where.items()) if len(parts) > 1}

    def check(self, patients: Mapping[str, str | None]) -> None:
        """
        Raises:
            ValueError: If a patient, or a slide, stands in two parts.
        """
        leaks = self.leaks(patients)
        if leaks:
            who, parts = next(iter(leaks.items()))
            raise ValueError(
                f"{who} stands in {' and '.join(parts)} of the split {self.name}"
                + (f", and {len(leaks) - 1:,} more do the like" if len(leaks) > 1 else "")
                + "; keep all slides of a patient in one part."
            )


def read_splits(path: str | Path) -> list[Split]:
    """Returns the splits of a file, or of the files in a folder that are called as such files are.

    Raises:
        ValueError: If there are none, or a file is of no known form.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no {path}; name a file or folder of splits.")
    if not path.is_dir():
        return [_split(path)]
    files = sorted((x for x in path.iterdir() if FILES.fullmatch(x.name)), key=_number)
    names = {x.name for x in files}
    files = [x for x in files if x.name.replace("_bool", "") not in names - {x.name}]
    if not files:
        raise ValueError(
            f"{path} has no splits; splits_0.csv, fold0.csv or splits.csv are understood."
        )
    return [_split(x) for x in files]


def is_fold(columns: Iterable[str]) -> bool:
    """Whether these are the columns of TransMIL's foldK.csv."""
    return {"train", "train_label"} <= set(columns)


def _split(path: Path) -> Split:
    table = read_table(path)
    parts = [part for part in PARTS if part in table.columns]
    which = find(table.columns, ("split",))
    if which is not None:
        name = column(table, BAG, path, "the name of a slide")
        rows = [(row[name], _part_name(row[which], path)) for row in _rows(table, name, which)]
        found = {part: [x for x, y in rows if y == part] for part in PARTS}
    elif not parts:
        raise ValueError(
            f"{path} is no split: it needs the columns train, val and test, or bag_name and split, "
            f"and has {', '.join(table.columns)}."
        )
    elif all(_is_bool(table[part]) for part in parts):
        names = table[table.columns[0]]
        found = {part: list(names[table[part].str.lower() == "true"]) for part in parts}
    else:
        found = {part: list(table[part].dropna()) for part in parts}
    named = {part: tuple(slide_id(x) for x in slides) for part, slides in found.items() if slides}
    return Split(path.stem, named)


def _rows(table: Any, *columns: str) -> list[dict[str, str]]:
    return table[list(columns)].dropna().to_dict("records")


def _part_name(said: str, path: Path) -> str:
    names = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
    part = names.get(said.strip().lower(), said.strip().lower())
    if part not in PARTS:
        raise ValueError(f"{path} must say train, val or test of a slide, got {said!r}.")
    return part


def _is_bool(cells: Any) -> bool:
    return set(cells.dropna().str.lower()) <= {"true", "false"}


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.name)
    return (int(digits[0]) if digits else -1, path.name)
