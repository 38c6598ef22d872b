"""Makes the task Image: CIFAR-10 as a sequence of 1,024 grey pixels, ten classes.

Read from the npz files of grey pixels (`x` [rows, 32, 32], `y`), from the python archive of the
original, or from the Hub.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from nystromer.recipes.files.errors import reason
from nystromer.recipes.lra.store import Prepared, Split, from_hub, hold_out

HUB = "uoft-cs/cifar10"
ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601, of red, green and blue
CLASSES, PIXELS = 10, 1024
LARGEST = 2**30  # bytes of a file when it is unpacked
HELD_OUT = 0.1  # of the training rows, for validation, as in the benchmark
ALLOWED = {  # all that the archive's pickles name
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def source(data_dir: Path) -> list[Path]:
    """Finds the files in the folder: grey npz, or the archive, packed or not.

    Raises:
        ValueError: If there are neither.
    """
    for folder in (data_dir / "cifar10_gray", data_dir):
        if all((folder / f"{split}.npz").is_file() for split in BATCHES):
            return [folder / f"{split}.npz" for split in BATCHES]
    if (data_dir / ARCHIVE).is_file():
        return [data_dir / ARCHIVE]
    folder = data_dir / "cifar-10-batches-py"
    if folder.is_dir():
        return [folder / name for names in BATCHES.values() for name in names]
    raise ValueError(
        f"`--data-dir` must hold cifar10_gray/train.npz and test.npz, {ARCHIVE} or {folder.name}, "
        f"got {data_dir}; without --data-dir they come from the Hub."
    )


def read(files: Sequence[Path], seed: int = 0) -> Prepared:
    """Reads the splits from the files that `source` found; a tenth of the training rows validates.

    Raises:
        ValueError: If a file is damaged or a label is none of the ten classes.
    """
    if files[0].suffix == ".npz":
        found = {path.stem: npz(path) for path in files}
    else:
        batches = dict(unpack(path) for path in files) if len(files) > 1 else unpack_all(files[0])
        found = {split: joined([batches[n] for n in names]) for split, names in BATCHES.items()}
    return splits(found, seed)


def download(seed: int = 0) -> Prepared:
    """Reads the same from the Hub."""
    found = {}
    for split in BATCHES:
        rows = from_hub(HUB, split).with_format("numpy")
        found[split] = (grey(np.stack(rows["img"][:])), np.asarray(rows["label"][:]))
    return splits(found, seed)


def splits(found: dict[str, tuple[np.ndarray, np.ndarray]], seed: int) -> Prepared:
    """Checks pixels and labels, and returns the splits.

    Raises:
        ValueError: If they are not those of CIFAR-10.
    """
    for split, (x, y) in found.items():
        if len(x) != len(y) or x.shape[1:] != (PIXELS,) or x.dtype != np.uint8:
            raise ValueError(
                f"The {split} pixels must be bytes [rows, 32, 32] with as many labels, got "
                f"{x.dtype} {list(x.shape)} and {len(y)} labels."
            )
        if not np.isin(y, np.arange(CLASSES)).all():
            wrong = y[~np.isin(y, np.arange(CLASSES))][0]
            raise ValueError(f"A label of {split} must be one of 0 ... 9, got {wrong}.")
    x, y = found["train"]
    rest, held = hold_out(y.tolist(), HELD_OUT, seed)
    parts = {"train": (x[rest], y[rest]), "validation": (x[held], y[held]), "test": found["test"]}
    return Prepared({name: Split(list(x), y.tolist()) for name, (x, y) in parts.items()})


def npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels and labels of an npz file.

    Raises:
        ValueError: If it is no npz file with x and y, is cut short, or claims to be huge.
    """
    try:
        with ZipFile(path) as members:
            if sum(member.file_size for member in members.infolist()) > LARGEST:
                raise ValueError("more than a gigabyte")
        with path.open("rb") as stream, np.load(stream) as file:  # allow_pickle is off
            return file["x"].reshape(len(file["x"]), -1), file["y"].astype(np.int64)
    except Exception as error:  # whatever foreign bytes make NumPy raise
        raise ValueError(
            f"{path} must be an npz file with x and y, got {reason(error)}; it may be cut short."
        ) from error


def unpack_all(archive: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the batches in the packed archive.

    Raises:
        ValueError: If it is cut short or lacks one, or as `batch`.
    """
    names = {name for batch in BATCHES.values() for name in batch}
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in names and (file := tar.extractfile(member)):
                    found[name] = batch(file.read(LARGEST), f"{archive}: {name}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive} must be a whole .tar.gz, got {error}.") from error
    if missing := names - set(found):
        raise ValueError(f"{archive} must hold {min(missing)}, which it lacks; download it again.")
    return found


def unpack(path: Path) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the name of a batch of the unpacked archive, and what is in it.

    Raises:
        ValueError: If the file is missing, or as `batch`.
    """
    if not path.is_file():
        raise ValueError(f"The archive's folder must hold {path.name}, got {path.parent}.")
    return path.name, batch(path.read_bytes(), str(path))


def batch(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the grey pixels and labels of one pickle, of which nothing but arrays is built.

    Raises:
        ValueError: If it is damaged, names anything but NumPy's arrays, or claims more bytes than
            it has.
    """
    try:
        rows = Restricted(io.BytesIO(data), encoding="bytes").load()
        if rows[b"data"].nbytes > len(data):
            raise ValueError(f"{rows[b'data'].nbytes:,} bytes of pixels")
        pixels = rows[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return grey(pixels), np.asarray(rows[b"labels"])
    except Exception as error:  # whatever foreign bytes make pickle raise
        raise ValueError(f"{name} must be a batch of CIFAR-10, got {reason(error)}.") from error


class Restricted(pickle.Unpickler):
    """Builds arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}, which is no array")
        return super().find_class(module, name)


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the batches one after another."""
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def grey(pixels: np.ndarray) -> np.ndarray:
    """Returns grey pixels [rows, 1024] for coloured ones [rows, 32, 32, 3]."""
    return np.rint(pixels @ GREY).astype(np.uint8).reshape(len(pixels), -1)
