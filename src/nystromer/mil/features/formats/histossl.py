"""HistoSSL: ID.tif/features.npy, [N, 3 + D]: level, x and y of the tile, then its features."""

from __future__ import annotations

from functools import partial

import numpy as np

from nystromer.mil.features.arrays import WHOLE, Contents
from nystromer.mil.features.bags import TILES, Bag, read_columns, stored_bag
from nystromer.mil.features.formats.plain import is_features

ROWS = 100  # that are looked at


def bag_of(held: Contents) -> Bag | None:
    array, folder = held.arrays[WHOLE], held.path.parent
    if held.path.name != "features.npy" or not is_features(array) or array.shape[1] < 4:
        return None
    places = np.load(held.path, mmap_mode="r")[:ROWS, :3]
    if not np.array_equal(places, np.round(places)):
        return None
    return stored_bag(
        folder,
        "HistoSSL",
        array,
        read_coords=partial(read_columns, array, 1, 3),
        skip_columns=3,
        unit=TILES,
        patch_size=1.0,
    )
