"""Gives gradients of zeros to parameters that take part in some steps only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def zero_gradients(output: Tensor, unused: Iterable[Tensor]) -> Tensor:
    """Returns the output, whose backward now gives the unused parameters gradients of zeros.

    Without them their gradients are None, and DistributedDataParallel, which waits for every
    gradient in every step, stops at the next one.
    """
    if torch.is_grad_enabled():
        for parameter in unused:
            if parameter.requires_grad:
                output = output + parameter[:0].sum()  # 0, whatever its numbers are
    return output
