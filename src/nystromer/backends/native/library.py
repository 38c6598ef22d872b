"""Finds and loads the C++ library, and says in one sentence why not."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

import torch

NAME = "libnystromer.so"  # on every system: it is loaded by this path, never searched for


class Tensor(ctypes.Structure):
    """[B, H, N, D] by its strides, in elements."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4)]


class Mask(ctypes.Structure):
    """bool [B, N]; without data: every token is real."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 2)]


class Call(ctypes.Structure):
    """What one call works on; the struct of that name in source/call.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys")),
        *((name, ctypes.c_int64) for name in ("dim", "value_dim", "landmarks", "taps")),
        *((name, ctypes.c_int64) for name in ("threads", "bfloat16", "landmarks_given")),
        *((name, ctypes.c_int64) for name in ("pinv_iterations", "pinv_init")),
        *((name, ctypes.c_double) for name in ("scale", "pinv_ridge")),
        *((name, Mask) for name in ("key_mask", "query_mask")),
        *((name, Tensor) for name in ("query", "key", "value", "output")),
        ("conv_weight", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("q_tilde", "k_tilde", "gathered", "context")),
        ("log2_mass", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("query_clusters", "key_clusters", "exact_keys")),
        *((name, ctypes.c_void_p) for name in ("query_places", "key_places", "exact")),
        *((name, Tensor) for name in ("grad_query", "grad_key", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("grad_conv_weight", "grad_q_tilde")),
        ("grad_k_tilde", ctypes.c_void_p),
    ]


def load(path: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or None and what is missing; one that is there but broken is worth a warning."""
    if not path.exists():
        return None, "needs its library, which was not built (no C++ compiler at installation)"
    try:
        library = ctypes.CDLL(str(path))
        library.nystromer_size_of_call.restype = ctypes.c_int64
        library.nystromer_processor.restype = ctypes.c_char_p
        size = library.nystromer_size_of_call()
    except (OSError, AttributeError) as error:
        missing = f"needs its library, which does not load ({error})"
    else:
        if size == ctypes.sizeof(Call):
            return library, None
        missing = "needs its library, which is of another version than the Python around it"
    warnings.warn(
        f"backend='native' {missing}; 'blocked' takes its place. Install nystromer again.",
        stacklevel=2,
    )
    return None, missing


def tensor(x: torch.Tensor) -> Tensor:
    return Tensor(x.data_ptr(), x.stride())


def mask(x: torch.Tensor | None) -> Mask:
    return Mask() if x is None else Mask(x.data_ptr(), x.stride())


def run(name: str, call: Call) -> None:
    """Calls one of the library's functions; ctypes releases the GIL."""
    if LIBRARY is None:  # an exported program, on another machine
        raise NotImplementedError(f"backend='native' {MISSING}; use backend='blocked'.")
    if getattr(LIBRARY, f"nystromer_{name}")(ctypes.byref(call)):
        raise MemoryError("backend='native' found no memory for its scratch tables.")


# At import, so that torch.compile sees a constant.
LIBRARY, MISSING = load(Path(__file__).with_name(NAME))


def in_use() -> str:
    """Says which backend CPUs get by `auto`, and why not this one if it is another."""
    if MISSING is None:
        return f"auto: native, {processor()}"
    return f"auto: blocked, since native {MISSING}"


def processor() -> str:
    """The instructions that the library uses: "AVX-512", "AVX2", "portable"; "" without one."""
    return LIBRARY.nystromer_processor().decode() if LIBRARY else ""
