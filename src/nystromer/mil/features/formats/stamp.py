"""STAMP: ID.h5 with feats and coords, of three ages.

From 2.1 the file's attributes are unit="um", tile_size_um, tile_size_px, extractor, stamp_version;
before, tile_size instead; the oldest say nothing, and there 224 stand for the 256 µm of a tile.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from nystromer.mil.features.arrays import Array, Contents
from nystromer.mil.features.bags import MICROMETRES, Bag, stored_bag
from nystromer.mil.features.formats.plain import is_features

OLDEST_UM, OLDEST_PX = 256.0, 224.0  # of a tile


def bag_of(held: Contents) -> Bag | None:
    features, coords, facts = held.first("feats"), held.first("coords"), held.attributes
    if not is_features(features):
        return None
    side, pixels = facts.get("tile_size_um"), facts.get("tile_size_px")
    if side is None and _text(facts.get("unit")) == "um":
        side = facts.get("tile_size")
    read_coords = None
    if side is None:
        side, pixels = OLDEST_UM, OLDEST_PX
        read_coords = None if coords is None else partial(_in_micrometres, coords)
    return stored_bag(
        held.path,
        "STAMP",
        features,
        coords,
        read_coords=read_coords,
        unit=MICROMETRES,
        patch_size=float(side),
        encoder=_text(facts.get("extractor")),
        magnification=None if pixels is None else 10 * float(pixels) / float(side),
    )


def _in_micrometres(coords: Array) -> Tensor:
    return coords.read().float() * (OLDEST_UM / OLDEST_PX)


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
