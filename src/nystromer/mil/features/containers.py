"""What a file holds, from its header where there is one: HDF5, npy, npz, safetensors, torch.save.

Nothing pickled is ever opened.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nystromer.mil.features.arrays import (
    NUMBERS,
    WHOLE,
    Array,
    Contents,
    as_tensor,
    readable,
    torch_dtype,
)


def contents(path: Path) -> Contents:
    """Returns what a file with a suffix of LISTERS holds.

    Raises:
        ValueError: If the file is empty, damaged, or holds pickled objects.
        ImportError: If h5py or safetensors is needed and missing.
    """
    with readable(path):
        return LISTERS[path.suffix.lower()](path)


def hdf5(path: Path) -> Contents:
    h5py = _h5py()
    with h5py.File(path, "r") as file:
        arrays = {
            name: Array(path, name, x.shape, torch_dtype(x.dtype), _read_hdf5, dict(x.attrs))
            for name, x in file.items()
            if isinstance(x, h5py.Dataset) and x.dtype.kind in NUMBERS
        }
        return Contents(path, arrays, dict(file.attrs))


def npy(path: Path) -> Contents:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    dtype = torch_dtype(array.dtype)
    return Contents(path, {WHOLE: Array(path, WHOLE, array.shape, dtype, _read_npy)})


def npz(path: Path) -> Contents:
    headers: dict[tuple[int, int], Callable] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
            name = member.removesuffix(".npy")
            if dtype.kind in NUMBERS:
                arrays[name] = Array(path, name, shape, torch_dtype(dtype), _read_npz)
    return Contents(path, arrays)


def safetensors(path: Path) -> Contents:
    with _safetensors(path) as file:
        arrays = {}
        for name in file.keys():  # noqa: SIM118, it is no dict
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            dtype = part[:0].dtype if shape else file.get_tensor(name).dtype
            arrays[name] = Array(path, name, shape, dtype, _read_safetensors)
        return Contents(path, arrays)


def torch_save(path: Path) -> Contents:
    tensors = _load_torch(path)
    return Contents(
        path,
        {
            name: Array(path, name, tuple(x.shape), x.dtype, _read_torch)
            for name, x in tensors.items()
        },
    )


def _read_hdf5(path: Path, name: str, columns: slice | None) -> Tensor:
    with _h5py().File(path, "r") as file:
        return as_tensor(_part(file[name], columns))


def _read_npy(path: Path, name: str, columns: slice | None) -> Tensor:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    return as_tensor(np.array(_part(mapped, columns)))


def _read_npz(path: Path, name: str, columns: slice | None) -> Tensor:
    with np.load(path, allow_pickle=False) as file:
        return as_tensor(_part(file[name], columns))


def _read_safetensors(path: Path, name: str, columns: slice | None) -> Tensor:
    with _safetensors(path) as file:
        return _part(file.get_tensor(name), columns)


def _read_torch(path: Path, name: str, columns: slice | None) -> Tensor:
    return _part(_load_torch(path)[name], columns).clone()


def _part(array: Any, columns: slice | None) -> Any:
    return array[...] if columns is None else array[..., columns]


def _load_torch(path: Path) -> Mapping[str, Tensor]:
    """Mapped into memory, so only what is used is read; old files of torch.save are read whole."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    named = loaded if isinstance(loaded, Mapping) else {WHOLE: loaded}
    return {str(name): x.detach() for name, x in named.items() if isinstance(x, Tensor)}


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files need h5py: pip install nystromer[mil].") from error
    return h5py


def _safetensors(path: Path) -> Any:
    try:
        from safetensors import safe_open
    except ImportError as error:
        message = "safetensors files need safetensors: pip install nystromer[mil]."
        raise ImportError(message) from error
    return safe_open(path, "pt")


LISTERS: dict[str, Callable[[Path], Contents]] = {
    ".h5": hdf5,
    ".hdf5": hdf5,
    ".npy": npy,
    ".npz": npz,
    ".safetensors": safetensors,
    ".pt": torch_save,
    ".pth": torch_save,
}
