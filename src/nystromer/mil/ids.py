"""Names of slides: a table may write ID.svs, a folder ID.h5, and both mean ID."""

from __future__ import annotations

from pathlib import Path

from nystromer.mil.columns import SUFFIXES as TABLES

FEATURES = (".h5", ".hdf5", ".npy", ".npz", ".pt", ".pth", ".safetensors")
SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
OTHER_SLIDES = (".czi", ".dcm", ".qptiff", ".isyntax", ".jpg", ".jpeg", ".png")
SUFFIXES = (*FEATURES, *TABLES, *SLIDES, *OTHER_SLIDES)


def slide_id(name: str | Path) -> str:
    """Returns the name of a slide without folders and without suffixes of files."""
    name = str(name).strip().replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    while (dot := name.rfind(".")) > 0 and name[dot:].lower() in SUFFIXES:
        name = name[:dot]
    return name


def listed(names: list[str], most: int = 3) -> str:
    """Returns names as a sentence lists them: the first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
