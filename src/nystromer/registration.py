"""Operations that autograd, torch.compile and torch.export see as one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operation(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function, by its annotations, as torch.ops.nystromer.<name>, on every device.

    torch.library.custom_op does the same, but its first call imports torch's compiler: a second or
    two for somebody who compiles nothing.
    """

    def register(function: Callable[..., Any]) -> Any:
        qualified = f"nystromer::{name}"
        torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(qualified, "default", function)
        return getattr(torch.ops.nystromer, name).default

    return register
