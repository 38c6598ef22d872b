"""Lists the benchmarks, what each shows and how long it takes, and runs one of them.

    python -m benchmarks                      # the list
    python -m benchmarks attention.cpu --help # one of them, with its options

To be called in the folder that holds `benchmarks`. Rows go to benchmarks/results, and `publish`
draws the figures and tables of README and docs from them.
"""

from __future__ import annotations

import ast
import importlib
import sys
import textwrap
import warnings
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    name, *options = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        show_list()
    elif name not in scripts():
        print(f"No benchmark is called {name!r}; `python -m benchmarks` lists them.")
        sys.exit(2)
    else:
        sys.argv = [f"python -m benchmarks {name}", *options]
        warnings.filterwarnings("ignore")  # of the packages that are compared
        sys.exit(importlib.import_module(f"benchmarks.{name}").main())


def scripts() -> dict[str, str]:
    """Returns the docstring of every script, a file with a `main`, by its name: "attention.cpu"."""
    found = {}
    for path in [*sorted(HERE.glob("[a-z]*/*.py")), *sorted(HERE.glob("[a-z]*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            name = ".".join(path.relative_to(HERE).with_suffix("").parts)
            found[name] = ast.get_docstring(tree) or ""
    return found


def show_list() -> None:
    for name, text in scripts().items():
        print(f"{name:28}{duration(text)}")
        print(textwrap.indent(textwrap.fill(text.split("\n\n")[0], 76), "    "))
    print("\n`python -m benchmarks NAME` runs one; with --help it says more and runs nothing.")


def duration(text: str) -> str:
    """Returns what the docstring says after "Takes", "about six minutes" for example."""
    return text.partition("\nTakes ")[2].partition(".\n")[0].replace("\n", " ")


if __name__ == "__main__":
    main()
