"""Arrays in files: their shapes are known before they are read, and what is wrong is said."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

WHOLE = ""  # the name of an array that is alone in its file
NUMBERS = "biuf"  # NumPy's kinds of them


@dataclass(frozen=True)
class Array:
    """An array in a file, which `read` reads.

    Args:
        path: The file.
        name: Of the array in it.
        shape: As it is stored.
        dtype: That `read` gives.
        reader: Reads the array of that name, or some columns of it, from the file.
        attributes: What else the file says of it.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    reader: Callable[[Path, str, slice | None], Tensor]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def read(self, columns: slice | None = None) -> Tensor:
        """Returns the array, or some of its columns, in the dtype in which it is stored.

        Raises:
            ValueError: If the file is damaged.
        """
        with readable(self.path):
            return self.reader(self.path, self.name, columns)


@dataclass(frozen=True)
class Contents:
    """What a file holds: arrays by their names, and attributes of the file."""

    path: Path
    arrays: Mapping[str, Array]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def first(self, *names: str) -> Array | None:
        """Returns the first array that goes by one of the names, or None."""
        return next((self.arrays[name] for name in names if name in self.arrays), None)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into one sentence.

    Raises:
        ValueError: If anything went wrong.
    """
    try:
        yield
    except UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds Python objects, which could run code, and is not opened; "
            "save the tensors alone, say by torch.save(tensor, path)."
        ) from error
    except Exception as error:
        known = (OSError, ValueError, RuntimeError, KeyError, EOFError, zlib.error)
        if not isinstance(error, (*known, zipfile.BadZipFile)) and not _of_safetensors(error):
            raise
        lines = str(error).strip().splitlines() or ["it is empty"]
        raise ValueError(f"{path} cannot be read: {lines[0].rstrip('. ')}.") from error


def _of_safetensors(error: Exception) -> bool:
    return type(error).__name__ == "SafetensorError"


def as_tensor(array: np.ndarray) -> Tensor:
    """Returns a NumPy array of numbers as a tensor; torch has no arithmetic for uint16 to uint64.

    Raises:
        ValueError: If it holds anything but numbers.
    """
    if array.dtype.kind not in NUMBERS:
        raise ValueError(f"it holds {array.dtype} where numbers are needed")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """Returns the dtype that `as_tensor` gives."""
    return as_tensor(np.empty(0, dtype)).dtype
