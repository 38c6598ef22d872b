"""How what the system or a library reports becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def reason(error: BaseException) -> str:
    """Returns the first thing that an error says, on one line and without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    first = getattr(error, "strerror", None) or " ".join(
        lines[: 2 if lines[0].endswith(":") else 1]
    )
    kind = "" if " " in first else type(error).__name__  # of KeyError: 'x', say
    return ": ".join(x for x in (kind, first) if x)[:300].rstrip(". ")


WRITING = (OSError, SafetensorError)
TORCH_WRITING = (*WRITING, RuntimeError)


@contextmanager
def said_when_unwritable(
    path: Path, what: str = "`--output`", errors: tuple[type[Exception], ...] = WRITING
) -> Iterator[None]:
    """Turns what is raised when a file cannot be written into one sentence.

    Args:
        path: What is written.
        what: What that is to the user.
        errors: What the libraries that write raise; torch raises RuntimeError.

    Raises:
        ValueError: If the disk is full or read-only, a name is too long or taken, or whatever else
            the system says.
    """
    try:
        yield
    except errors as error:
        raise ValueError(f"{what} {path} cannot be written to: {reason(error)}.") from error
