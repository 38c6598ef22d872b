"""The bags of a training with what is known of them, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nystromer.mil.cohort import Cohort, gather
from nystromer.mil.ensemble import CLASSIFICATION, SURVIVAL
from nystromer.mil.features.bags import Bag
from nystromer.mil.features.folders import find_bags
from nystromer.mil.models import pad_bags
from nystromer.mil.tables.labels import Case, Labels, read_labels
from nystromer.recipes.files.fingerprints import of_pieces, of_rows
from nystromer.recipes.slides.settings import Settings

Track = Callable[[Sequence[Any], str], Iterable[Any]]  # goes over items, and says what it does


def silently(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Goes over items without a progress bar."""
    return items


def read_cohort(settings: Settings, track: Track = silently) -> tuple[Cohort, Labels]:
    """Reads which bags there are and what is known of them; no feature is read yet.

    Raises:
        ValueError: If something cannot be read, does not fit together or is missing.
    """
    path = settings.labels or settings.features
    if settings.labels is None and path.is_dir():
        raise ValueError(
            f"A training needs labels, and the folder {path} holds none; name a table by --labels."
        )
    labels = read_labels(
        path,
        slides=settings.slides,
        label_column=settings.label_column,
        time_column=settings.time_column,
    )
    labels = only(labels, settings.task, str(path))
    bags = find_bags(settings.features, track=lambda files: track(files, "Looking at files"))
    cohort = gather(bags, labels, by=settings.bag)
    cohort.check(skip_missing=settings.skip_missing)
    classes = labels.classes()
    if settings.task == CLASSIFICATION and len(classes) == len(cohort.bags) > 1:
        raise ValueError(
            f"`{labels.label_column}` must hold classes, got another in each of the "
            f"{len(classes):,} bags; choose a column by --label-column."
        )
    return cohort, labels


def only(labels: Labels, task: str, path: str) -> Labels:
    """Returns labels that say of a slide what the task needs, and nothing else.

    Raises:
        ValueError: If they do not.
    """
    if task == SURVIVAL and labels.survival is None:
        reason = labels.unread or f"{path} has no columns of a time and of how it ended"
        raise ValueError(
            f"`--task survival` needs survival: {reason.rstrip('.')}; name columns time and event."
        )
    if task == CLASSIFICATION and labels.label_column is None:
        raise ValueError(
            f"{path} has survival and no classes; add --task survival, or --label-column."
        )
    other: dict[str, Any] = {"label": None} if task == SURVIVAL else {"time": None, "event": None}
    return replace(labels, cases={x: replace(case, **other) for x, case in labels.cases.items()})


def fingerprints(cohort: Cohort, track: Track = silently) -> dict[str, str]:
    """Reads all features, and returns what a resumed run must find again.

    Raises:
        ValueError: If a file is damaged, or features are not finite.
    """

    def pieces() -> Iterator[bytes | memoryview]:
        for bag in track(cohort.bags, "Reading features"):
            features = bag.features().contiguous()
            yield f"{bag.id} {list(features.shape)} {features.dtype}\n".encode()
            yield features.view(torch.uint8).numpy().data

    known = [[bag.id, *vars(cohort.cases[bag.id]).values()] for bag in cohort.bags]
    return {"the features": of_pieces(pieces()), "the labels": of_rows(known)}


class BagRows(Dataset[Any]):
    """Bags as rows, read when they are asked for.

    Args:
        bags: Of one width.
        targets: What is known of each, [n] or [n, 2]; see `targets`.
    """

    def __init__(self, bags: Sequence[Bag], targets: Tensor) -> None:
        self.bags, self.targets = bags, targets

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"features": self.bags[i].features(), "target": self.targets[i], "bag": self.bags[i]}


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Returns a batch: features [B, N, D], mask [B, N] and labels [B] or [B, 2]."""
    features, mask = pad_bags([x["features"] for x in rows], [x["bag"].id for x in rows])
    return {
        "features": features,
        "mask": mask,
        "labels": torch.stack([x["target"] for x in rows]),
    }


def targets(cases: Sequence[Case], classes: Sequence[str]) -> Tensor:
    """Returns the numbers of classes, int64 [n]; without classes (time, event), float32 [n, 2]."""
    if classes:
        return torch.tensor([classes.index(str(case.label)) for case in cases])
    return torch.tensor([[float(case.time or 0.0), float(bool(case.event))] for case in cases])
