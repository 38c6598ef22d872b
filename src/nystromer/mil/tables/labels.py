"""What is known of every slide: its class, its survival, its patient; from the tables of others.

CLAM: case_id, slide_id, label. TransMIL: foldK.csv. STAMP: a clinical table (PATIENT, ...) and a
slide table (PATIENT, FILENAME). torchmil: the folder labels/. Else a column of names and one of
labels, in a file of their own or in the table that holds the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nystromer.mil.columns import BAG, LABEL, PATIENT, column, find, read_table
from nystromer.mil.features.containers import contents
from nystromer.mil.ids import slide_id
from nystromer.mil.tables.splits import PARTS, is_fold
from nystromer.mil.tables.survival import SurvivalColumns, survival_columns


@dataclass(frozen=True)
class Case:
    """What a table says of one slide; None where a cell is empty or there is no such column.

    Args:
        patient: Whose slide it is.
        label: Its class.
        time: Until the event, or until nobody looked any more.
        event: Whether the event was seen.
    """

    patient: str | None = None
    label: str | None = None
    time: float | None = None
    event: bool | None = None

    def known(self) -> bool:
        return self.label is not None or self.time is not None


@dataclass(frozen=True)
class Labels:
    """
    Args:
        cases: What is known of every slide, by its name without suffix.
        survival: The columns of survival, if there are any.
        label_column: The column of the classes, if there is one.
        unread: Why columns of survival beside the classes are not understood, if they are not.
    """

    cases: dict[str, Case]
    survival: SurvivalColumns | None = None
    label_column: str | None = None
    unread: str | None = None

    def classes(self) -> list[str]:
        """Returns the names of the classes, sorted: their order in every output."""
        names = {case.label for case in self.cases.values() if case.label is not None}
        numbers = all(name.lstrip("-").isdigit() for name in names)
        return sorted(names, key=(lambda x: (int(x), x)) if numbers else None)

    def patients(self) -> dict[str, str | None]:
        """Returns the patient of every slide."""
        return {slide: case.patient for slide, case in self.cases.items()}


def read_labels(
    path: str | Path,
    *,
    slides: str | Path | None = None,
    label_column: str | None = None,
    time_column: str | None = None,
) -> Labels:
    """Returns what a table says of every slide.

    Args:
        path: The table, .csv, .tsv or .parquet, or torchmil's folder labels/.
        slides: STAMP's slide table, where `path` is its clinical table.
        label_column: The column of the classes, if its name is none of the usual ones.
        time_column: The column of the time, if there are several.

    Raises:
        ValueError: If a column is missing or unclear, or a slide has two labels.
    """
    path = Path(path)
    if path.is_dir():
        return Labels(dict(_cases_of_folder(path)), label_column="labels")
    table = read_table(path)
    if is_fold(table.columns):
        return Labels(_unique(_cases_of_fold(table), path), label_column="label")
    survival, unread = _survival(table, path, label_column, time_column)
    patient = find(table.columns, PATIENT)
    name = find(table.columns, BAG) if slides is None else None
    name = name or patient or column(table, BAG + PATIENT, path, "the name of a slide")
    label = _label_column(table, path, label_column, survival, {name, patient})
    cases = _unique(_cases(table, name, patient, label, survival), path)
    if slides is not None:
        cases = dict(_cases_of_slides(Path(slides), cases))
    return Labels(cases, survival, label, unread)


def _survival(
    table: Any, path: Path, label_column: str | None, time_column: str | None
) -> tuple[SurvivalColumns | None, str | None]:
    """Survival that is not understood is no error where classes are there to be learnt."""
    try:
        return survival_columns(table.columns, path, time_column), None
    except ValueError as error:
        if time_column is not None or not (label_column or find(table.columns, LABEL)):
            raise
        return None, str(error)


def _label_column(
    table: Any,
    path: Path,
    named: str | None,
    survival: SurvivalColumns | None,
    others: set[str | None],
) -> str | None:
    """The column named, one that is called as labels are, or the only one that is left."""
    if named is not None and named not in table.columns:
        raise ValueError(f"{path} has no column {named!r}; it has {', '.join(table.columns)}.")
    left = [x for x in table.columns if x not in others]
    found = named or find(table.columns, LABEL) or (left[0] if len(left) == 1 else None)
    if found is None and survival is None:
        raise ValueError(
            f"{path} has no column called {' or '.join(LABEL)}; say which it is by --label-column, "
            f"one of {', '.join(left) or 'none'}."
        )
    return found


def _cases(
    table: Any,
    name: str,
    patient: str | None,
    label: str | None,
    survival: SurvivalColumns | None,
) -> Iterator[tuple[str, Case]]:
    for row in table.to_dict("records"):
        cells = {key: cell.strip() for key, cell in row.items() if isinstance(cell, str)}
        key = slide_id(cells.get(name, ""))
        if not key:
            continue
        ended: tuple[float | None, bool | None] = (None, None)
        if survival is not None and cells.get(survival.time) and cells.get(survival.event):
            ended = survival.read(cells[survival.time], cells[survival.event], key)
        said = cells.get(label) or None if label is not None else None
        yield key, Case(cells.get(patient) if patient is not None else None, said, *ended)


def _cases_of_fold(table: Any) -> Iterator[tuple[str, Case]]:
    for part in PARTS:
        if f"{part}_label" in table.columns:
            renamed = table[[part, f"{part}_label"]].rename(columns={f"{part}_label": "label"})
            for key, case in _cases(renamed, part, None, "label", None):
                yield key, Case(label=_whole(case.label))


def _cases_of_slides(path: Path, patients: dict[str, Case]) -> Iterator[tuple[str, Case]]:
    """A slide has what the clinical table says of its patient."""
    table = read_table(path)
    patient = column(table, PATIENT, path, "the patient")
    name = column(table, BAG, path, "the file of a slide")
    for row in table[[patient, name]].dropna().to_dict("records"):
        of_patient = patients.get(slide_id(row[patient]), Case())
        whose = row[patient].strip()
        yield (
            slide_id(row[name]),
            Case(whose, of_patient.label, of_patient.time, of_patient.event),
        )


def _cases_of_folder(folder: Path) -> Iterator[tuple[str, Case]]:
    files = sorted(x for x in folder.iterdir() if x.suffix.lower() in (".npy", ".h5"))
    if not files:
        raise ValueError(f"{folder} has no labels: a .npy a slide, as torchmil writes them.")
    for path in files:
        value = next(iter(contents(path).arrays.values())).read().reshape(-1)
        if len(value) != 1:
            raise ValueError(f"{path} must hold one label, got {len(value)}.")
        yield slide_id(path), Case(label=f"{value[0].item():g}")


def _whole(label: str | None) -> str | None:
    """ "1.0" as "1": a column with empty cells has its numbers written so."""
    return label.removesuffix(".0") if label is not None else None


def _unique(cases: Iterator[tuple[str, Case]], path: Path) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name, case in cases:
        if found.setdefault(name, case) != case:
            raise ValueError(
                f"{path} says two things of {name}: {_words(found[name])} and {_words(case)}; "
                "delete one of the lines."
            )
    return found


def _words(case: Case) -> str:
    said = {"patient": case.patient, "label": case.label, "time": case.time, "event": case.event}
    return ", ".join(f"{name} {x}" for name, x in said.items() if x is not None) or "nothing"
