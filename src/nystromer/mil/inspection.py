"""What a folder of bags holds, as lines of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from nystromer.mil.cohort import Cohort
from nystromer.mil.features.bags import Bag
from nystromer.mil.ids import listed
from nystromer.mil.tables.labels import Labels
from nystromer.mil.tables.splits import Split

Line = tuple[str, str]
NAMED = 20  # slides, at most


def lines_of_bags(bags: Sequence[Bag]) -> list[Line]:
    """Returns what is to be known of bags before they are read: (what, how much) a line."""
    sizes = sorted(bag.num_patches for bag in bags)
    coords = _counted(bags, lambda bag: bag.unit or ("yes" if bag.read_coords else None))
    return [
        ("bags", f"{len(bags):,}"),
        ("written by", _counted(bags, lambda bag: bag.kind)),
        ("patches", f"{sum(sizes):,}"),
        ("patches of a bag", f"{sizes[0]:,} to {sizes[-1]:,}, median {median(sizes):,.0f}"),
        ("width", _counted(bags, lambda bag: bag.width)),
        ("dtype", _counted(bags, lambda bag: str(bag.dtype).removeprefix("torch."))),
        ("encoder", _counted(bags, lambda bag: bag.encoder)),
        ("magnification", _counted(bags, lambda bag: _times(bag.magnification))),
        ("coordinates", coords),
        ("side of a patch", _counted(bags, lambda bag: _side(bag))),
    ]


def lines_of_labels(cohort: Cohort, labels: Labels) -> list[Line]:
    """Returns how bags and labels fit together."""
    known = cohort.cases.values()
    lines = []
    if labels.label_column is not None:
        counts = Counter(case.label for case in known if case.label is not None)
        classes = [f"{name} {counts[name]:,}" for name in labels.classes()]
        lines.append((f"bags by `{labels.label_column}`", ", ".join(classes) or "none"))
    if labels.survival is not None:
        seen = sum(case.event is True for case in known)
        rest = sum(case.event is False for case in known)
        lines.append(("survival", f"{seen:,} events, {rest:,} censored; {labels.survival}"))
    if labels.unread is not None:
        lines.append(("survival", f"not read: {labels.unread}"))
    patients = {case.patient for case in known if case.patient is not None}
    lines.append(("patients", f"{len(patients):,}" if patients else "not said"))
    lines.append(("features without label", how_many(cohort.unlabelled)))
    lines.append(("labels without features", how_many(cohort.featureless)))
    return lines


def lines_of_split(split: Split, cohort: Cohort, labels: Labels | None) -> list[Line]:
    """Returns how many slides the parts of a split have, and who stands in two of them."""
    sizes = ", ".join(f"{part} {len(slides):,}" for part, slides in split.parts.items())
    have = {slide.id for slide in cohort.slides()}
    lacking = sorted({x for slides in split.parts.values() for x in slides} - have)
    patients = {} if labels is None else labels.patients()
    leaks = [f"{who} ({' and '.join(parts)})" for who, parts in split.leaks(patients).items()]
    lines = [(f"split {split.name}", sizes), ("  in two parts", how_many(leaks))]
    return lines + ([("  without features or label", how_many(lacking))] if lacking else [])


def how_many(names: list[str]) -> str:
    """Returns the number of names, and the first NAMED of them."""
    return f"{len(names):,}: {listed(names, NAMED)}" if names else "0"


def _counted(bags: Iterable[Bag], of: Callable[[Bag], object]) -> str:
    counts = Counter(of(bag) for bag in bags)
    named = [("not said" if x is None else str(x), count) for x, count in counts.most_common()]
    if len(named) == 1:
        return named[0][0]
    return ", ".join(f"{name} ({count:,})" for name, count in named)


def _times(magnification: float | None) -> str | None:
    return None if magnification is None else f"{magnification:.3g}x"


def _side(bag: Bag) -> str | None:
    return None if bag.patch_size is None else f"{bag.patch_size:g} {bag.unit or ''}".strip()
