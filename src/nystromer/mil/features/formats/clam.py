"""CLAM: h5_files/ID.h5 (features, coords) and pt_files/ID.pt (a tensor) of the same patches.

The side of a patch stands only in patches/ID.h5, in attributes of its coords.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nystromer.mil.features.arrays import WHOLE, Array, Contents
from nystromer.mil.features.bags import PIXELS, Bag, stored_bag
from nystromer.mil.features.containers import contents
from nystromer.mil.features.formats.plain import is_features


def bag_of(held: Contents) -> Bag | None:
    features, coords = held.first("features"), held.first("coords")
    if not is_features(features):
        return None
    side = None if coords is None else _side(coords)
    if side is None:
        side = _side(_patches(held.path))
    return stored_bag(held.path, "CLAM", features, coords, unit=PIXELS, patch_size=side)


def bag_of_tensor(held: Contents) -> Bag | None:
    """The tensor of pt_files; of the twin in h5_files there are coordinates."""
    features = held.first(WHOLE)
    if held.path.parent.name != "pt_files" or not is_features(features):
        return None
    twin = held.path.parent.with_name("h5_files") / f"{held.path.stem}.h5"
    coords = contents(twin).first("coords") if twin.exists() else _patches(held.path)
    side = _side(_patches(held.path))
    return stored_bag(held.path, "CLAM", features, coords, unit=PIXELS, patch_size=side)


def _patches(path: Path) -> Array | None:
    """coords of patches/ID.h5, beside the folder of the features or one above."""
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        candidate = folder / "patches" / f"{path.stem}.h5"
        if candidate.exists():
            return contents(candidate).first("coords")
    return None


def _side(coords: Array | None) -> float | None:
    """The side of a patch in level-0 pixels: patch_size counts pixels of patch_level."""
    if coords is None or "patch_size" not in coords.attributes:
        return None
    downsample = np.ravel(coords.attributes.get("downsample", 1.0))[0]
    return float(coords.attributes["patch_size"]) * float(downsample)
