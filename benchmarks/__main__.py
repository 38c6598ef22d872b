"""Lists the benchmarks, what each shows and how long it takes, and runs one of them.

    python -m benchmarks                      # the list
    python -m benchmarks attention.cpu --help # one of them, with its options

To be run from the folder that holds `benchmarks`. Rows go to benchmarks/results, and `publish`
draws the figures and tables of README and docs from them.
"""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = ("common", "clustered.rivals", "clustered.tables")  # parts of scripts, not scripts


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        show_list()
    elif words[0] not in scripts():
        print(f"No benchmark is called {words[0]!r}; `python -m benchmarks` lists them.")
        sys.exit(2)
    else:
        sys.argv = [f"python -m benchmarks {words[0]}", *words[1:]]
        warnings.filterwarnings("ignore")  # of the packages that are compared
        sys.exit(importlib.import_module(f"benchmarks.{words[0]}").main())


def scripts() -> dict[str, str]:
    """Returns the docstring of every benchmark by its name, "attention.cpu" for example."""
    paths = [*sorted(HERE.glob("[a-z]*/*.py")), *sorted(HERE.glob("*.py"))]
    names = {".".join(path.relative_to(HERE).with_suffix("").parts): path for path in paths}
    return {
        name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for name, path in names.items()
        if "__" not in name and name not in LIBRARY
    }


def show_list() -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "what it shows", "takes", box=SIMPLE)
    for name, text in scripts().items():
        table.add_row(name, text.split("\n\n")[0].replace("\n", " "), duration(text))
    Console().print(table)


def duration(text: str) -> str:
    """Returns what the docstring says after "Takes", "8 minutes" for example."""
    return text.partition("\nTakes ")[2].partition(".")[0].replace("\n", " ")


if __name__ == "__main__":
    main()
