"""Features and labels brought together: which bags can be learnt from, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nystromer.mil.features.bags import Bag, join
from nystromer.mil.features.folders import duplicates
from nystromer.mil.ids import listed
from nystromer.mil.tables.labels import Case, Labels

BY = ("slide", "patient")


@dataclass(frozen=True)
class Cohort:
    """
    Args:
        bags: Every bag with patches and, where there are labels, a label.
        cases: What is known of each, by its id.
        unlabelled: Slides that have features and no label.
        featureless: Slides that have a label and no features, or not one patch.
        duplicates: Names that several files have.
    """

    bags: list[Bag]
    cases: dict[str, Case]
    unlabelled: list[str]
    featureless: list[str]
    duplicates: list[str]

    def slides(self) -> list[Bag]:
        """Returns the slides of all bags."""
        return [slide for bag in self.bags for slide in (bag.slides or (bag,))]

    def check(self, *, skip_missing: bool = False) -> None:
        """Says what stands in the way of a training.

        Args:
            skip_missing: Go on without the slides that lack features or a label.

        Raises:
            ValueError: If slides are missing or doubled, or features are not alike.
        """
        if self.duplicates:
            raise ValueError(
                f"{_slides(self.duplicates)} in more than one file; name a folder with one of them."
            )
        for names, what, instead in (
            (self.unlabelled, "no label", "add to the table"),
            (self.featureless, "no features", "encode"),
        ):
            if names and not skip_missing:
                raise ValueError(
                    f"{_slides(names, 'have' if len(names) > 1 else 'has')} {what}; {instead} what "
                    "is missing, or go on without by --skip-missing."
                )
        if not self.bags:
            raise ValueError("No slide has both features and a label; do their names agree?")
        for what, of in (("width", width_of), ("encoder", encoder_of)):
            groups = {of(slide): slide.id for slide in reversed(self.slides())}
            if len(groups) > 1:
                seen = " and ".join(
                    f"{value} in {name}" for value, name in list(groups.items())[:2]
                )
                raise ValueError(
                    f"All features must have one {what}, got {seen}; name a folder with one of "
                    "them."
                )


def gather(bags: Sequence[Bag], labels: Labels | None = None, *, by: str = "slide") -> Cohort:
    """Returns bags with what is known of them.

    Args:
        bags: Of slides.
        labels: Of slides; None: nothing is known, and nothing is missing.
        by: "slide", or "patient": one bag of all slides of a patient.

    Raises:
        ValueError: If a slide has no patient, or the slides of a patient have different labels.
    """
    if by not in BY:
        raise ValueError(f"`--bag` must be slide or patient, got {by!r}.")
    known = {} if labels is None else {x: case for x, case in labels.cases.items() if case.known()}
    have = {bag.id for bag in bags if bag.num_patches}
    cases = {x: case for x, case in known.items() if x in have}
    unlabelled = [] if labels is None else sorted(have - known.keys())
    empty = {bag.id for bag in bags} - have
    usable = [
        replace(bag, patient=cases.get(bag.id, Case()).patient)
        for bag in bags
        if bag.num_patches and (labels is None or bag.id in cases)
    ]
    featureless = sorted((known.keys() - have) | empty)
    twice = duplicates(bags)
    if by == "patient":
        usable, cases = _by_patient(usable, cases)
    return Cohort(usable, cases, unlabelled, featureless, twice)


def width_of(bag: Bag) -> int:
    return bag.width


def encoder_of(bag: Bag) -> str | None:
    return bag.encoder


def _by_patient(bags: Iterable[Bag], cases: dict[str, Case]) -> tuple[list[Bag], dict[str, Case]]:
    slides: dict[str, list[Bag]] = {}
    of_patient: dict[str, Case] = {}
    for bag in bags:
        if bag.patient is None:
            raise ValueError(
                f"`--bag patient` needs the patient of every slide, got none of {bag.id}; add a "
                "column case_id to the labels, or give STAMP's slide table by --slides."
            )
        case = cases[bag.id]
        slides.setdefault(bag.patient, []).append(bag)
        first = of_patient.setdefault(bag.patient, case)
        if replace(case, patient=None) != replace(first, patient=None):
            raise ValueError(
                f"The slides of {bag.patient} have different labels ({first.label} and "
                f"{case.label}, say), and one bag has one; use --bag slide."
            )
    return [join(name, parts) for name, parts in slides.items()], of_patient


def _slides(names: list[str], verb: str | None = None) -> str:
    count = "1 slide" if len(names) == 1 else f"{len(names):,} slides"
    return f"{count} ({listed(names)}) {verb or ('are' if len(names) > 1 else 'is')}"
