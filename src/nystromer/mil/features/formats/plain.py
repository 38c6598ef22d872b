"""A plain array a bag: npy, npz, safetensors or a tensor, [N, D]; coords in the file if it has any.

Of several arrays in a file the features are called features or feats.
"""

from __future__ import annotations

from typing import TypeGuard

from nystromer.mil.features.arrays import WHOLE, Array, Contents
from nystromer.mil.features.bags import Bag, stored_bag

NAMES = ("features", "feats", WHOLE, "arr_0")
BESIDE = ("coords", "labels", "inst_labels", "patch_labels", "patches")  # folders without features


def bag_of(held: Contents) -> Bag | None:
    if held.path.parent.name in BESIDE or held.path.stem.endswith(".index"):
        return None
    alone = next(iter(held.arrays.values())) if len(held.arrays) == 1 else None
    features = held.first(*NAMES) or alone
    if not is_features(features):
        return None
    return stored_bag(held.path, held.path.suffix.lower()[1:], features, held.first("coords"))


def is_features(array: Array | None) -> TypeGuard[Array]:
    """Whether an array is [N, D], as features are; one vector of a whole slide is none."""
    return array is not None and len(array.shape) == 2
