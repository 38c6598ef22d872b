"""Where the patches of a map are: squares in level-0 pixels, or in whatever the files count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nystromer.mil.features.bags import MICROMETRES, TILES, Bag
from nystromer.mil.slides import Slide


@dataclass(frozen=True)
class Places:
    """
    Args:
        corners: Upper left corners of the patches, x and y, float64 [N, 2].
        side: Of a patch.
        in_pixels: Whether both are level-0 pixels.
    """

    corners: np.ndarray
    side: float
    in_pixels: bool

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The left, right, lower and upper end of all patches; y points down."""
        (left, top), (right, bottom) = self.corners.min(0), self.corners.max(0) + self.side
        return float(left), float(right), float(bottom), float(top)

    def raster(self, values: np.ndarray) -> np.ndarray:
        """Returns values [N] as an image [rows, columns] with NaN where no patch is."""
        cells = np.floor((self.corners - self.corners.min(0)) / self.side + 1e-6).astype(int)
        columns, rows = cells.max(0) + 1
        image = np.full((rows, columns), np.nan)
        image[cells[:, 1], cells[:, 0]] = values
        return image


def places_of(bag: Bag, mpp: float | None = None) -> Places | None:
    """Returns where a bag's patches are, or None if no file says it.

    Args:
        bag: With coordinates in level-0 pixels, micrometres or tiles.
        mpp: Micrometres a level-0 pixel, to turn micrometres into pixels.

    Raises:
        ValueError: If there is not one place a patch.
    """
    coords = bag.coords()
    if coords is None:
        return None
    corners = coords.double().numpy()
    if corners.shape != (bag.num_patches, 2) or not np.isfinite(corners).all():
        raise ValueError(
            f"The coordinates of {bag.id} must be one finite x and y for each of its "
            f"{bag.num_patches:,} patches, got {list(corners.shape)}; write both again from the "
            "same patches."
        )
    side = bag.patch_size or spacing(corners)
    places = Places(corners, side, bag.unit not in (MICROMETRES, TILES))
    if bag.unit == MICROMETRES and mpp is not None:
        places = Places(corners / mpp, side / mpp, True)
    return places


def spacing(corners: np.ndarray) -> float:
    """Returns the least distance of two columns or two rows of patches, or 1."""
    gaps = [np.diff(np.unique(corners[:, axis])) for axis in (0, 1)]
    return float(min((gap.min() for gap in gaps if len(gap)), default=1.0))


def check_fits(places: Places, bag: Bag, slide: Slide) -> None:
    """Checks that patches lie on a slide.

    Raises:
        ValueError: If they are not in pixels, or lie elsewhere.
    """
    if not places.in_pixels:
        instead = "name it by --mpp" if bag.unit == MICROMETRES else "leave out --slide"
        raise ValueError(
            f"The coordinates of {bag.id} are {bag.unit}, and {slide.path} does not say what they "
            f"are in pixels; {instead}."
        )
    left, right, bottom, top = places.extent
    if (
        min(left, top) < 0
        or right > slide.width + places.side
        or bottom > slide.height + places.side
    ):
        raise ValueError(
            f"The patches of {bag.id} reach from {left:,.0f}, {top:,.0f} to {right:,.0f}, "
            f"{bottom:,.0f}, and {slide.path} has {slide.width:,} x {slide.height:,} pixels; name "
            "the slide that they were cut from."
        )
