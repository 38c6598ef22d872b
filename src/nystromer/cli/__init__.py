"""The command `nystromer`: bad input ends in one sentence on stderr and exit code 2."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def main() -> None:
    """Runs the command line of this process.

    The exit code is 2 for bad input, 1 for a run that came to nothing (its numbers are not finite,
    or memory is not enough), 130 and 143 where it was interrupted.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # partial files go
    try:
        code = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == INTERRUPTED:
        print("Interrupted.", file=sys.stderr)
    sys.exit(code)


def _run() -> int:
    try:
        from nystromer.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        _stop("The command line needs typer and rich: pip install typer rich.")
    try:
        words = sys.argv[1:] or ["--help"]
        return app(words, prog_name="nystromer", standalone_mode=False) or 0
    except FloatingPointError as error:
        _stop(str(error), FAILED)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        _stop(str(error))
    except OSError as error:  # what no recipe has put into words
        _stop(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}.")
    except Exception as error:
        if hasattr(error, "format_message"):  # click's, or that of the click inside typer
            _stop(error.format_message())
        if type(error).__name__ == "Abort":  # likewise, for Ctrl-C
            return INTERRUPTED
        if isinstance(error, MemoryError) or "alloc" in str(error):  # torch has a RuntimeError
            _stop("Memory is not enough for this; take fewer or smaller rows at a time.", FAILED)
        raise


def _stop(message: str, code: int = BAD_INPUT) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
