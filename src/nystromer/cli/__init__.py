"""The command `nystromer`: bad input ends in one sentence on stderr and exit code 2."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> None:
    """Runs the command line of this process."""
    try:
        from nystromer.cli.commands import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        _stop("The command line needs typer and rich: pip install nystromer[bench].")
    try:
        app(sys.argv[1:] or ["--help"], prog_name="nystromer", standalone_mode=False)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        _stop(str(error))
    except Exception as error:
        if hasattr(error, "format_message"):  # click's, or that of the click inside typer
            _stop(error.format_message())
        raise


def _stop(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)
