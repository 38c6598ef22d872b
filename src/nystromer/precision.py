"""Where numbers are kept: what autocast may change, and what it may not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")
# asked once: torch 2.11 cannot trace the question
AUTOCAST_DEVICES = tuple(filter(torch.amp.is_autocast_available, DEVICES))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else: where sums, logits and the inverse live."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_inputs(*tensors: Tensor | None) -> tuple:
    """What autocast does to the inputs of scaled_dot_product_attention; float64 stays."""
    query = tensors[0]
    if not isinstance(query, Tensor) or not _autocasts(query):
        return tensors
    dtype = torch.get_autocast_dtype(query.device.type)
    half = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in half else x for x in tensors)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off for the device of x, where it is on."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def centred(x: Tensor) -> Tensor:
    """Landmarks, or their contexts, [..., M, D], without their mean.

    No softmax over landmarks changes with it, nor its gradient, but half precision rounds in
    proportion to it.
    """
    return x - x.mean(-2, keepdim=True)


def _autocasts(x: Tensor) -> bool:
    device = x.device.type
    return device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
