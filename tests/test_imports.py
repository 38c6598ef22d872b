import importlib
import subprocess
import sys

import pytest

HEAVY = (
    "transformers",
    "triton",
    "datasets",
    "matplotlib",
    "numpy.testing",
    "typer",
    "rich",
    "sklearn",
)


def test_import_nystromer_loads_torch_and_nothing_else_heavy():
    """In a fresh process; what torch itself loads does not count."""
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "import nystromer, nystromer.compat.lucidrains\n"
        f"print([m for m in {HEAVY} if m in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_hf_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "nystromer.hf", raising=False)
    with pytest.raises(ImportError, match=r"needs transformers: pip install nystromer\[hf\]"):
        importlib.import_module("nystromer.hf")
