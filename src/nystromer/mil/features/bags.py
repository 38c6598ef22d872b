"""A bag: the patches of a slide (or of all slides of a patient), read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nystromer.mil.features.arrays import Array
from nystromer.mil.ids import slide_id

PIXELS, MICROMETRES, TILES = "level-0 pixels", "µm", "tiles"


@dataclass(frozen=True)
class Bag:
    """
    Args:
        id: Name of the slide, without suffix, or of the patient.
        path: The file with its features.
        kind: The format of the file.
        num_patches: N.
        width: D, features of a patch.
        dtype: Of the features as they are stored.
        read_features: Reads them, [N, D].
        read_coords: Reads where the patches are, [N, 2] (x, y), if the files say it.
        unit: What coordinates and patch size are measured in.
        patch_size: Side of a patch.
        encoder: The model that made the features.
        magnification: At which the encoder saw the patches; 10 micrometres a pixel divided by
            those of the patch where only they are known.
        patient: Whose slide it is, once `gather` has put the labels to it.
        slides: The slides of a patient's bag, in the order of its patches.
    """

    id: str
    path: Path
    kind: str
    num_patches: int
    width: int
    dtype: torch.dtype
    read_features: Callable[[], Tensor] = field(repr=False)
    read_coords: Callable[[], Tensor] | None = field(default=None, repr=False)
    unit: str | None = None
    patch_size: float | None = None
    encoder: str | None = None
    magnification: float | None = None
    patient: str | None = None
    slides: tuple[Bag, ...] = ()

    def features(self) -> Tensor:
        """Reads the features, [N, D] in the dtype in which they are stored.

        Raises:
            ValueError: If the file is damaged, or holds NaN or infinity.
        """
        features = self.read_features()
        if features.is_floating_point() and not features.isfinite().all():
            bad = int((~features.isfinite()).any(1).sum())
            raise ValueError(
                f"The features of {self.id} ({self.path}) hold NaN or infinity in {bad:,} of "
                f"{self.num_patches:,} patches; encode the slide again, or leave it out."
            )
        return features

    def coords(self) -> Tensor | None:
        """Reads where the patches are, [N, 2] as x, y in `unit`, or None if no file says it."""
        return None if self.read_coords is None else self.read_coords()


def stored_bag(
    name: str | Path,
    kind: str,
    features: Array,
    coords: Array | None = None,
    *,
    read_coords: Callable[[], Tensor] | None = None,
    skip_columns: int = 0,
    unit: str | None = None,
    patch_size: float | None = None,
    encoder: str | None = None,
    magnification: float | None = None,
) -> Bag:
    """Returns the bag whose features and coordinates are arrays in files.

    Args:
        name: The file or folder that is called like the slide.
        kind, unit, patch_size, encoder, magnification: As `Bag`.
        features: [N, D], or [N, skip_columns + D].
        coords: [N, 2], if there are any.
        read_coords: Reads them another way than coords.read does.
        skip_columns: First columns that are no features.

    Raises:
        ValueError: If the arrays have other shapes.
    """
    if coords is not None and coords.shape != (features.shape[0], 2):
        raise ValueError(
            f"{coords.path} must have one x and y for each of the {features.shape[0]:,} patches of "
            f"{features.path}, got coordinates of shape {list(coords.shape)}; write both again "
            "from the same patches."
        )
    if coords is not None and read_coords is None:
        read_coords = coords.read
    return Bag(
        slide_id(name),
        features.path,
        kind,
        features.shape[0],
        features.shape[1] - skip_columns,
        features.dtype,
        partial(read_columns, features, skip_columns) if skip_columns else features.read,
        read_coords,
        unit if read_coords is not None else None,
        patch_size,
        encoder,
        magnification,
    )


def read_columns(array: Array, start: int, stop: int | None = None) -> Tensor:
    """Reads some columns of an array [N, D]."""
    return array.read(slice(start, stop))


def join(patient: str, slides: Sequence[Bag]) -> Bag:
    """Returns one bag of all patches of a patient's slides; its slides keep the coordinates."""
    first = slides[0]
    return Bag(
        patient,
        first.path.parent,
        first.kind,
        sum(bag.num_patches for bag in slides),
        first.width,
        first.dtype,
        partial(_read_all, slides),
        first.read_coords if len(slides) == 1 else None,
        first.unit if len(slides) == 1 else None,
        first.patch_size,
        first.encoder,
        first.magnification,
        patient,
        tuple(slides),
    )


def _read_all(slides: Sequence[Bag]) -> Tensor:
    return torch.cat([bag.features() for bag in slides])
