"""The command `nystromer`: bad input ends in one sentence on stderr and exit code 2."""

from __future__ import annotations

import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> None:
    """Runs the command line of this process; 130 is the exit code of an interrupted one."""
    try:
        code = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("Interrupted.", file=sys.stderr)
    sys.exit(code)


def _run() -> int:
    try:
        from nystromer.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        _stop("The command line needs typer and rich: pip install nystromer[bench].")
    try:
        words = sys.argv[1:] or ["--help"]
        return app(words, prog_name="nystromer", standalone_mode=False) or 0
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        _stop(str(error))
    except Exception as error:
        if hasattr(error, "format_message"):  # click's, or that of the click inside typer
            _stop(error.format_message())
        if type(error).__name__ == "Abort":  # likewise, for Ctrl-C
            return INTERRUPTED
        raise


def _stop(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)
