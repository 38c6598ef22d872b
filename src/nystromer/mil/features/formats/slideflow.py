"""slideflow: ID.pt (a tensor) beside ID.index.npz (locations, arr_0); bags_config.json for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nystromer.mil.features.arrays import WHOLE, Contents
from nystromer.mil.features.bags import PIXELS, Bag, stored_bag
from nystromer.mil.features.containers import contents
from nystromer.mil.features.formats.plain import is_features


def bag_of(held: Contents) -> Bag | None:
    features = held.first(WHOLE)
    index = next(
        (
            path
            for suffix in (".index.npz", ".index.npy")
            if (path := held.path.with_suffix(suffix)).exists()
        ),
        None,
    )
    if index is None or not is_features(features):
        return None
    facts = _config(held.path.parent)
    extractor = facts.get("extractor", {}).get("class")
    micrometres, pixels = facts.get("tile_um"), facts.get("tile_px")
    magnification = None
    if isinstance(micrometres, str) and micrometres.lower().endswith("x"):
        magnification = float(micrometres[:-1])
    elif micrometres and pixels:
        magnification = 10 * float(pixels) / float(micrometres)
    return stored_bag(
        held.path,
        "slideflow",
        features,
        contents(index).first("arr_0", WHOLE),
        unit=PIXELS,
        encoder=None if extractor is None else str(extractor).rsplit(".", 1)[-1],
        magnification=magnification,
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "bags_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
