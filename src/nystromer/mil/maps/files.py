"""A map as files: CSV, HDF5 as CLAM writes it, GeoJSON for QuPath."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nystromer.mil.maps.places import Places


@dataclass(frozen=True)
class Map:
    """
    Args:
        id: The bag.
        method: How it was made.
        explained: What it explains, "tumor" for example.
        scores: float32 [N].
        places: Where the patches are, if it is known.
    """

    id: str
    method: str
    explained: str
    scores: np.ndarray
    places: Places | None

    @property
    def ranks(self) -> np.ndarray:
        """The share of patches that score lower, [N], from 0 to 1."""
        order = self.scores.argsort(kind="stable").argsort(kind="stable")
        return order / max(1, len(order) - 1)


def write_csv(found: Map, path: Path) -> None:
    """Writes a row a patch, in the order of the features: x, y, score, rank."""
    columns = {"score": found.scores, "rank": found.ranks}
    if found.places is not None:
        x, y = found.places.corners.T
        columns = {"x": x, "y": y, **columns}
    table = np.stack(list(columns.values()), 1)
    formats = ["%.10g"] * (len(columns) - 1) + ["%.4f"]
    np.savetxt(path, table, formats, ",", header=",".join(columns), comments="", encoding="utf-8")


def write_h5(found: Map, path: Path) -> None:
    """Writes `attention_scores` [N, 1] and `coords` [N, 2], CLAM's names, whatever the method."""
    import h5py

    with h5py.File(path, "w") as file:
        file["attention_scores"] = found.scores[:, None]
        file.attrs.update(method=found.method, explained=found.explained)
        if found.places is not None:
            file["coords"] = found.places.corners.round().astype(np.int64)
            file["coords"].attrs.update(
                patch_size=found.places.side, in_level0_pixels=found.places.in_pixels
            )


def write_geojson(found: Map, path: Path) -> None:
    """Writes a tile object a patch with its score and rank as measurements; QuPath opens it.

    Args:
        found: With places in pixels.
        path: The new file.
    """
    assert found.places is not None
    side = found.places.side
    square = np.array([[0, 0], [side, 0], [side, side], [0, side], [0, 0]])
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        rows = zip(found.places.corners, found.scores, found.ranks, strict=True)
        for i, (corner, score, rank) in enumerate(rows):
            feature = {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [(corner + square).tolist()]},
                "properties": {
                    "objectType": "tile",
                    "measurements": {
                        f"{found.method} {found.explained}": float(f"{score:.6g}"),
                        "rank": round(float(rank), 4),
                    },
                },
            }
            file.write((",\n" if i else "") + json.dumps(feature))
        file.write("\n]}\n")
