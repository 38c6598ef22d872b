"""The formats of feature files, one a module: each knows its own by what is in the file.

`bag_of(contents)` of a module returns the bag in a file, or None if the file is not of its format.
The first of a suffix's formats that returns one is right, so the plain arrays come last.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nystromer.mil.features.arrays import Contents
from nystromer.mil.features.bags import Bag
from nystromer.mil.features.containers import contents
from nystromer.mil.features.formats import (
    clam,
    histossl,
    plain,
    slideflow,
    stamp,
    torchmil,
    trident,
)

Format = Callable[[Contents], Bag | None]
HDF5: tuple[Format, ...] = (stamp.bag_of, torchmil.bag_of, trident.bag_of, clam.bag_of)
TORCH: tuple[Format, ...] = (slideflow.bag_of, clam.bag_of_tensor, plain.bag_of)
FORMATS: dict[str, tuple[Format, ...]] = {
    ".h5": HDF5,
    ".hdf5": HDF5,
    ".pt": TORCH,
    ".pth": TORCH,
    ".npy": (histossl.bag_of, torchmil.bag_of, plain.bag_of),
    ".npz": (plain.bag_of,),
    ".safetensors": (plain.bag_of,),
}


def read_bag(path: Path) -> Bag | None:
    """Returns the bag in a file, or None if it holds something else: labels, coordinates, weights.

    Raises:
        ValueError: If the file is damaged, its features are of another shape, or its coordinates do
            not belong to them.
    """
    held = contents(path)
    features = held.first("features", "feats")
    if features is not None and len(features.shape) > 2:
        raise ValueError(
            f"{path} must hold features [N, D], got {list(features.shape)}; write one row a patch."
        )
    found = (bag_of(held) for bag_of in FORMATS[path.suffix.lower()])
    return next((bag for bag in found if bag is not None), None)
