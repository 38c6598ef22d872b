"""Measures how far maps can be trusted (`nystromer mil faithfulness`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from nystromer.mil.cohort import gather
from nystromer.mil.features.arrays import WHOLE
from nystromer.mil.features.bags import Bag
from nystromer.mil.features.containers import contents
from nystromer.mil.features.formats.torchmil import dataset_root
from nystromer.mil.maps.faithfulness import Flipping, auc, flip, random_map
from nystromer.mil.maps.methods import METHODS, refusal
from nystromer.mil.maps.pictures import flipping_figure
from nystromer.mil.tables.labels import read_labels
from nystromer.recipes.files.outputs import new_folder
from nystromer.recipes.slides.explained import (
    Track,
    Trained,
    find_checked,
    load_trained,
    silently,
)

RANDOM = "random"
ANNOTATIONS = ("patch_labels", "inst_labels")  # folders of torchmil


@dataclass(frozen=True)
class Line:
    """What a method reached over all bags.

    Args:
        method: Or "random".
        area: Mean area between the curves of patch flipping.
        beats_random: Whether it lies two standard errors above that of random maps.
        auc: Mean AUC against annotated patches, if there are any.
        bags: How many bags have such an AUC.
    """

    method: str
    area: float
    beats_random: bool
    auc: float | None
    bags: int


def faithfulness(
    run: Path,
    features: Path,
    output: Path,
    *,
    labels: Path | None = None,
    methods: Sequence[str] = (),
    draws: int = 5,
    track: Track = silently,
) -> list[Line]:
    """Flips patches by every method and by random maps, and writes rows, a table and a picture.

    Args:
        run: As `load_trained`.
        features: As `find_bags`; torchmil's folders bring annotated patches.
        output: A new folder: bags.csv, methods.csv, flipping.png.
        labels: As `read_labels`; then each bag's own class is explained, else the predicted one.
        methods: Of METHODS; all that the models have if there are none.
        draws: Random maps of every bag.
        track: Goes over bags, say with a progress bar.

    Raises:
        ValueError: If an input is bad; nothing is written then.
    """
    if draws < 2:
        raise ValueError(f"`--draws` must be at least 2, got {draws}.")
    with new_folder(output) as partial:
        trained = load_trained(run)
        bags = find_checked(features, trained, track)
        classes = {} if labels is None else _classes(bags, labels, trained)
        bags = [bag for bag in bags if labels is None or bag.id in classes]
        refused = {x: refusal(trained.models[0], x) for x in methods or METHODS}
        for reason in refused.values():
            if methods and reason:
                raise ValueError(reason)
        chosen = [name for name, reason in refused.items() if not reason]
        curves: dict[str, list[Flipping]] = defaultdict(list)
        aucs: dict[str, list[float]] = defaultdict(list)
        rows = ["bag,explained,method,area,auc"]
        for bag in track(bags, "Taking patches away"):
            x, annotated = bag.features(), annotated_patches(bag)
            explained = classes.get(bag.id) or trained.predicted(x)
            maps = [(name, trained.explain(x, explained, method=name)) for name in chosen]
            maps += [(RANDOM, random_map(len(x), seed)) for seed in range(draws)]
            for name, scores in maps:
                found = _flip(trained, x, scores, explained)
                curves[name].append(found)
                area_under = None if annotated is None else auc(scores, annotated)
                if area_under is not None:
                    aucs[name].append(area_under)
                value = "" if area_under is None else f"{area_under:.4f}"
                rows.append(f"{bag.id},{explained},{name},{found.area:.5f},{value}")
        lines = summary(curves, aucs, len(bags))
        (partial / "bags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (partial / "methods.csv").write_text(_table(lines), encoding="utf-8")
        flipping_figure(curves).savefig(partial / "flipping.png")
    return lines


def summary(
    curves: dict[str, list[Flipping]], aucs: dict[str, list[float]], bags: int
) -> list[Line]:
    """Returns a line a method, the largest area first."""
    areas = {name: [x.area for x in found] for name, found in curves.items()}
    needed = mean(areas[RANDOM]) + 2 * stdev(areas[RANDOM]) / sqrt(bags)
    lines = [
        Line(
            name,
            mean(found),
            name != RANDOM and mean(found) > needed,
            mean(aucs[name]) if aucs[name] else None,
            len(aucs[name]) if name != RANDOM else len(aucs[name]) * bags // len(found),
        )
        for name, found in areas.items()
    ]
    return sorted(lines, key=lambda line: -line.area)


def annotated_patches(bag: Bag) -> Tensor | None:
    """Reads which patches are annotated as positive, bool [N], from torchmil's folders, if there.

    Raises:
        ValueError: If there is not one label a patch.
    """
    root = dataset_root(bag.path)
    if root is None:
        return None
    for folder in ANNOTATIONS:
        path = root / folder / bag.path.name
        held = contents(path).first(WHOLE, "labels", folder) if path.exists() else None
        if held is not None:
            found = held.read().flatten()
            if len(found) != bag.num_patches:
                raise ValueError(
                    f"{path} must have a label for each of the {bag.num_patches:,} patches of "
                    f"{bag.path}, got {len(found):,}."
                )
            return found > 0
    return None


def _flip(trained: Trained, x: Tensor, scores: Tensor, explained: str) -> Flipping:
    """The mean curves of the models."""
    pairs = zip(trained.models, trained.evidence(explained), strict=True)
    found = [flip(model, x, scores, evidence) for model, evidence in pairs]
    most, least = (
        torch.stack([getattr(one, name) for one in found]).mean(0)
        for name in ("most_first", "least_first")
    )
    return Flipping(found[0].removed, most, least)


def _classes(bags: list[Bag], labels: Path, trained: Trained) -> dict[str, str]:
    cohort = gather(bags, read_labels(labels))
    found = {
        bag.id: str(cohort.cases[bag.id].label)
        for bag in cohort.bags
        if cohort.cases[bag.id].label is not None
    }
    if trained.risks:
        return {bag.id: trained.classes[0] for bag in cohort.bags}
    for bag, name in found.items():
        if name not in trained.classes:
            raise ValueError(
                f"The models know the classes {', '.join(trained.classes)}, got {name!r} for {bag} "
                f"in {labels}."
            )
    if not found:
        raise ValueError(f"{labels} has no class of any bag; do the names agree?")
    return found


def _table(lines: list[Line]) -> str:
    rows = ["method,area,beats_random,auc,annotated_bags"]
    for x in lines:
        value = "" if x.auc is None else f"{x.auc:.4f}"
        rows.append(f"{x.method},{x.area:.5f},{x.beats_random},{value},{x.bags}")
    return "\n".join(rows) + "\n"
