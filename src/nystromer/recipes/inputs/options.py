"""Checks of options that several recipes have."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from nystromer.checks import check_positive

BYTES_A_PARAMETER = 16  # itself, its gradient and the two means of AdamW, each in float32


def check_counts(settings: object, *names: str) -> None:
    """Checks that numbers, where they are given, are at least 1.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        if getattr(settings, name) is not None:
            check_positive(name, getattr(settings, name))


def check_rate(rate: float | None) -> None:
    """Checks a learning rate, if there is one.

    Raises:
        ValueError: If it is not above 0 and finite.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"`learning_rate` must be above 0 and finite, got {rate}.")


def check_one_of(option: str, value: str, known: Iterable[str]) -> str:
    """Checks that a name is known, and returns it.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in known:
        raise ValueError(f"`{option}` must be one of {', '.join(known)}, got {value!r}.")
    return value


def check_memory(parameters: int, what: str) -> None:
    """Checks that this machine can train so many parameters.

    Args:
        parameters: Their number.
        what: What the number comes from, in words.

    Raises:
        ValueError: If it has less memory than they need.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = BYTES_A_PARAMETER * parameters
    if needed > memory:
        raise ValueError(
            f"{what} take {needed / 2**30:,.0f} GiB in training, and this machine has "
            f"{memory / 2**30:,.0f}; take fewer."
        )
