"""torchmil: features/ID.npy (or .h5) beside coords/, labels/ and inst_labels/, or patch_labels/.

Several encoders have folders of their own, features/features_ENCODER/ID.npy.
"""

from __future__ import annotations

from pathlib import Path

from nystromer.mil.features.arrays import WHOLE, Contents
from nystromer.mil.features.bags import Bag, stored_bag
from nystromer.mil.features.containers import contents
from nystromer.mil.features.formats.plain import is_features

BESIDE = ("coords", "labels", "inst_labels", "patch_labels")


def bag_of(held: Contents) -> Bag | None:
    root = dataset_root(held.path)
    features = held.first(WHOLE, "features")
    if root is None or not is_features(features):
        return None
    folder, places = held.path.parent.name, root / "coords" / held.path.name
    coords = contents(places).first(WHOLE, "coords") if places.exists() else None
    encoder = folder.removeprefix("features_") if folder != "features" else None
    return stored_bag(held.path, "torchmil", features, coords, encoder=encoder)


def dataset_root(path: Path) -> Path | None:
    """Returns the folder that holds features/, or None if nothing of torchmil stands beside it."""
    above = next((x for x in list(path.parents)[:2] if x.name == "features"), None)
    if above is None or not any((above.parent / name).is_dir() for name in BESIDE):
        return None
    return above.parent
