"""Reads the original Pathfinder images: curv_contour_length_14 with imgs and metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from nystromer.recipes.files.errors import reason
from nystromer.recipes.lra.pathfinder import SIZE
from nystromer.recipes.lra.store import Prepared, Split, read_lines

FOLDER = "curv_contour_length_14"
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # in the order of the metadata


def source(data_dir: Path) -> list[Path]:
    """Finds the metadata files, and gives them in order.

    Raises:
        ValueError: If there are none.
    """
    for folder in (data_dir, data_dir / FOLDER, data_dir / "pathfinder32" / FOLDER):
        if found := list((folder / "metadata").glob("*.npy")):
            return sorted(found, key=lambda path: (len(path.stem), path.stem))
    raise ValueError(
        f"`--data-dir` must hold {FOLDER}/metadata/*.npy and imgs, got {data_dir}; without "
        "--data-dir the images are drawn here."
    )


def read(metadata: Sequence[Path]) -> Prepared:
    """Reads the images: 80, 10 and 10 % of them.

    Empty files, which the release has, are left out and counted.

    Raises:
        ValueError: If an image is missing, damaged or outside the folder, or a label is neither 0
            nor 1.
    """
    images, labels, empty = [], [], 0
    for path in metadata:
        for number, line in enumerate(tqdm(list(read_lines(path)), path.name, leave=False), 1):
            place = f"{path}, line {number}"
            words = line.decode("utf-8", "replace").split()
            if len(words) < 4 or words[3] not in ("0", "1"):
                raise ValueError(
                    f"{place} must be folder, file, number and a label 0 or 1, got {line!r}."
                )
            image = path.parents[1] / words[0] / words[1]
            if {"..", "/"} & {x for word in words[:2] for x in (*Path(word).parts, word[:1])}:
                raise ValueError(f"{place} names {image}, which is outside the folder.")
            if image.is_file() and not image.stat().st_size:
                empty += 1
                continue
            images.append(pixels(image, place))
            labels.append(int(words[3]))
    ends = np.cumsum([0.0, *SHARES.values()]).round(6) * len(labels)
    splits = {
        name: Split(images[int(a) : int(b)], labels[int(a) : int(b)])
        for name, a, b in zip(SHARES, ends[:-1], ends[1:], strict=True)
    }
    notes = [f"{empty:,} of {empty + len(labels):,} image files are empty and were left out."]
    return Prepared(splits, notes if empty else [])


def pixels(path: Path, place: str) -> np.ndarray:
    """Returns the grey pixels of an image.

    Raises:
        ValueError: If it is missing, damaged or of another size.
    """
    try:
        with Image.open(path) as image:
            if image.size != (SIZE, SIZE):  # before they are unpacked
                raise ValueError(f"{image.size} pixels")
            return np.array(image.convert("L")).ravel()
    except FileNotFoundError as error:
        raise ValueError(f"{place} names {path}, which is missing.") from error
    except Exception as error:  # whatever foreign bytes make Pillow raise
        raise ValueError(
            f"{path} must be a whole image of {SIZE} x {SIZE} pixels, got {reason(error)}."
        ) from error
