"""The slide itself, through openslide or tiffslide: its size, a thumbnail, patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

MPP = ("openslide.mpp-x", "tiffslide.mpp-x")


@dataclass(frozen=True)
class Slide:
    """
    Args:
        path: The file.
        handle: What openslide or tiffslide opened.
        width, height: In level-0 pixels.
        mpp: Micrometres a level-0 pixel, if known.
    """

    path: Path
    handle: Any = field(repr=False)
    width: int
    height: int
    mpp: float | None

    def thumbnail(self, longest: int) -> np.ndarray:
        """Returns the whole slide as RGB, uint8 [h, w, 3], of at most that many pixels a side."""
        with said_when_broken(self.path):
            return np.asarray(self.handle.get_thumbnail((longest, longest)).convert("RGB"))

    def patch(self, x: float, y: float, side: float, pixels: int) -> np.ndarray:
        """Returns a square of the slide as RGB, uint8 [pixels, pixels, 3].

        Args:
            x, y: Its upper left corner, in level-0 pixels.
            side: Likewise.
            pixels: Side of what is returned.
        """
        with said_when_broken(self.path):
            level = self.handle.get_best_level_for_downsample(side / pixels)
            size = max(1, round(side / self.handle.level_downsamples[level]))
            image = self.handle.read_region((round(x), round(y)), level, (size, size))
            return np.asarray(image.convert("RGB").resize((pixels, pixels)))


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Returns an opened slide.

    Args:
        path: SVS, NDPI, MRXS, TIFF or whatever else openslide reads.
        mpp: Micrometres a pixel, for files that do not say it; it goes before what they say.

    Raises:
        ValueError: If the file cannot be read as a slide, or mpp is not above zero.
        ImportError: If neither openslide nor tiffslide is there.
    """
    if mpp is not None and mpp <= 0:
        raise ValueError(f"`--mpp` must be above 0, got {mpp}.")
    if not path.is_file():
        raise ValueError(f"There is no slide {path}; name a file that openslide reads.")
    library = _library()
    with said_when_broken(path):
        handle = (library.TiffSlide if hasattr(library, "TiffSlide") else library.OpenSlide)(path)
        width, height = handle.dimensions
        said = next((float(handle.properties[x]) for x in MPP if handle.properties.get(x)), None)
    return Slide(path, handle, width, height, said if mpp is None else mpp)


@contextmanager
def said_when_broken(path: Path) -> Iterator[None]:
    """Turns what a library raises over a broken file into one sentence.

    Raises:
        ValueError: If it raised anything.
    """
    try:
        yield
    except Exception as error:  # each library has its own, and tifffile raises all kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} cannot be read as a slide: {lines[0].rstrip('. ')}.") from error


def _library() -> ModuleType:
    try:
        import openslide
    except (ImportError, OSError):  # OSError: the Python package without the C library
        try:
            import tiffslide
        except ImportError as error:
            raise ImportError("Slides need openslide: pip install nystromer[slides].") from error
        return tiffslide
    return openslide
