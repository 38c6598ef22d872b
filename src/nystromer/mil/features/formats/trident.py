"""TRIDENT: */features_ENCODER/ID.h5 (features) beside */patches/ID_patches.h5 (coords).

What is known of patches and slide stands in attributes of coords, the encoder in one of features or
in the name of the folder.
"""

from __future__ import annotations

from nystromer.mil.features.arrays import Contents
from nystromer.mil.features.bags import PIXELS, Bag, stored_bag
from nystromer.mil.features.containers import contents
from nystromer.mil.features.formats.plain import is_features

FOLDER = "features_"


def bag_of(held: Contents) -> Bag | None:
    features, folder = held.first("features"), held.path.parent
    patches = folder.parent / "patches" / f"{held.path.stem}_patches.h5"
    known = patches.exists() or folder.name.startswith(FOLDER)
    if not is_features(features) or not (known or "encoder" in features.attributes):
        return None
    stored = contents(patches).first("coords") if patches.exists() else None
    coords = held.first("coords") or stored
    facts = {} if coords is None else (stored or coords).attributes
    side, magnification = facts.get("patch_size_level0"), facts.get("target_magnification")
    encoder = features.attributes.get("encoder")
    encoder = encoder.decode() if isinstance(encoder, bytes) else encoder
    if not encoder and folder.name.startswith(FOLDER):
        encoder = folder.name.removeprefix(FOLDER)
    return stored_bag(
        held.path,
        "TRIDENT",
        features,
        coords,
        unit=PIXELS,
        patch_size=None if side is None else float(side),
        encoder=str(encoder) if encoder else None,
        magnification=None if magnification is None else float(magnification),
    )
