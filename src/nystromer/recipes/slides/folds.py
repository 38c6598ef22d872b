"""Folds: which bags are for training, for validation and for test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nystromer.mil.cohort import Cohort
from nystromer.mil.ensemble import CLASSIFICATION
from nystromer.mil.ids import listed
from nystromer.mil.tables.labels import Labels
from nystromer.mil.tables.splits import Split, read_splits
from nystromer.recipes.slides.scores import num_pairs
from nystromer.recipes.slides.settings import FOLDS, Settings

NEEDED = {"train": 2, "val": 1, "test": 1}  # bags of every class
PARTS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Fold:
    """Numbers of the bags of each part; `val` may be empty."""

    name: str
    train: list[int]
    val: list[int]
    test: list[int]


def make_folds(settings: Settings, cohort: Cohort, labels: Labels) -> list[Fold]:
    """Returns the folds of the own splits, or else stratified ones that keep patients together.

    Survival is stratified by whether the event was seen.

    Raises:
        ValueError: If there are too few patients, a split leaks or lacks features, or a part of a
            fold lacks what it needs.
    """
    cases = [cohort.cases[bag.id] for bag in cohort.bags]
    classes = settings.task == CLASSIFICATION
    strata = [str(case.label) if classes else case.event for case in cases]
    patients = [case.patient or bag.id for bag, case in zip(cohort.bags, cases, strict=True)]
    if classes and len(set(strata)) < 2:
        raise ValueError(f"`{labels.label_column}` must hold two classes or more, got {strata[0]}.")
    if settings.splits is not None:
        found = [
            own_fold(f"fold_{i}", split, cohort, labels, settings.skip_missing)
            for i, split in enumerate(read_splits(settings.splits))
        ]
    else:
        count = settings.folds or FOLDS
        check_count(count, strata, patients, "class" if classes else "outcome")
        parts = cut(range(len(cases)), strata, patients, count, settings.split_seed)
        found = [Fold(f"fold_{i}", train, [], test) for i, (train, test) in enumerate(parts)]
    folds = [with_validation(fold, settings, strata, patients) for fold in found]
    for fold in folds:
        if classes:
            check_classes(fold, strata)
        else:
            check_survival(fold, cases, settings.bins if settings.survival_loss == "nll" else 1)
    return folds


def cut(
    bags: Sequence[int], strata: Sequence[Any], patients: Sequence[str], count: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """Returns `count` pairs of (all other bags, the bags of one part)."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    chosen = np.asarray(bags)
    names = [str(strata[i]) for i in chosen]
    pairs = splitter.split(chosen, names, [patients[i] for i in chosen])
    return [(chosen[rest].tolist(), chosen[part].tolist()) for rest, part in pairs]


def check_count(count: int, strata: Sequence[Any], patients: Sequence[str], what: str) -> None:
    """Checks that every class has patients enough.

    Raises:
        ValueError: If not.
    """
    if count > len(set(patients)):
        raise ValueError(
            f"`--folds` must be at most the {len(set(patients)):,} patients, got {count:,}."
        )
    name, fewest = rarest(strata, patients)
    if fewest < count:
        words = name if what == "class" else ("event" if name else "censored")
        raise ValueError(
            f"The {what} {words} has {fewest:,} patient{'s'[: fewest > 1]}, too few for {count:,} "
            f"folds; take fewer --folds, or leave the {what} out."
        )


def rarest(strata: Sequence[Any], patients: Sequence[str]) -> tuple[Any, int]:
    """Returns the class with the fewest patients, and how many they are."""
    counts = Counter(stratum for stratum, _ in set(zip(strata, patients, strict=True)))
    return min(counts.items(), key=lambda x: (x[1], str(x[0])))


def own_fold(name: str, split: Split, cohort: Cohort, labels: Labels, skip_missing: bool) -> Fold:
    """Returns a split of slides as one of bags.

    Raises:
        ValueError: If it leaks, has no training or test part, or names slides without features.
    """
    split.check(labels.patients())
    numbers = {slide.id: i for i, bag in enumerate(cohort.bags) for slide in (bag.slides or (bag,))}
    missing = sorted({x for slides in split.parts.values() for x in slides} - numbers.keys())
    if missing and not skip_missing:
        raise ValueError(
            f"The split {split.name} names slides without features or label ({listed(missing)}); "
            "add them, or go on without by --skip-missing."
        )
    parts = {
        part: sorted({numbers[x] for x in split.parts.get(part, ()) if x in numbers})
        for part in PARTS
    }
    for part in ("train", "test"):
        if not parts[part]:
            raise ValueError(f"The split {split.name} has no bags for {PARTS[part]}; add some.")
    return Fold(name, **parts)


def with_validation(
    fold: Fold, settings: Settings, strata: Sequence[Any], patients: Sequence[str]
) -> Fold:
    """Returns the fold with a share of its training part for validation, if it has none."""
    if fold.val or not settings.validation:
        return fold
    some = [strata[i] for i in fold.train], [patients[i] for i in fold.train]
    count = min(round(1 / settings.validation), rarest(*some)[1])
    if count < 2:
        return fold  # a class of one patient: what is checked next says so
    train, val = cut(fold.train, strata, patients, count, settings.split_seed)[0]
    return Fold(fold.name, train, val, fold.test)


def check_classes(fold: Fold, strata: Sequence[Any]) -> None:
    """Checks that every class can be learnt and measured.

    Raises:
        ValueError: If a part has too few bags of one.
    """
    for part, needed in NEEDED.items():
        bags = getattr(fold, part)
        counts = Counter(strata[i] for i in bags)
        for name in sorted(set(strata)):
            if counts[name] < needed and bags:
                raise ValueError(
                    f"{fold.name} has {counts[name] or 'no'} bag{'s'[: counts[name] != 1]} of the "
                    f"class {name} for {PARTS[part]}, and a class needs {NEEDED['train']} for "
                    "training and 1 for the others; take fewer --folds, or leave the class out."
                )


def check_survival(fold: Fold, cases: Sequence[Any], bins: int) -> None:
    """Checks that survival can be learnt and measured.

    Raises:
        ValueError: If there are fewer events than intervals, or no two bags of the test part of
            which one is known to have lived longer.
    """
    events = sum(bool(cases[i].event) for i in fold.train)
    if events < bins:
        raise ValueError(
            f"{fold.name} has {events} event{'s'[: events != 1]} for training, too few for {bins} "
            "intervals of time; take fewer --bins."
        )
    times, seen = zip(*((cases[i].time, cases[i].event) for i in fold.test), strict=True)
    if not num_pairs(times, seen):
        raise ValueError(
            f"{fold.name} has no two bags for test of which one is known to have lived longer; "
            "take fewer --folds."
        )
