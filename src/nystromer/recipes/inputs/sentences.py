"""Reads what a folder of sentence-transformers puts behind its encoder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from nystromer.recipes.files.errors import reason

LEGACY = {  # the fields that said it before "pooling_mode"
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODULE_FILES = ("config.json", "model.safetensors")  # of a module behind the encoder
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken")


@dataclass(frozen=True)
class SentenceHead:
    """Says how one vector is made of the states of a text's tokens.

    Args:
        poolings: From `POOLINGS`; the vectors of several stand one after the other.
        normalized: Whether its length becomes 1.
    """

    poolings: tuple[str, ...]
    normalized: bool


def read_sentence_head(name: str) -> SentenceHead | None:
    """Reads the modules behind the encoder of a folder or Hub name; None: it lists no modules.

    Raises:
        ValueError: If a file cannot be read, or a module is neither pooling nor normalisation.
    """
    modules = _read(name, "modules.json")
    if modules is None:
        return None
    try:
        kinds = [(x["type"].rpartition(".")[2], x["path"]) for x in modules]
        expected = ["Transformer", "Pooling", "Normalize"][: max(2, len(kinds))]
        if [kind for kind, _ in kinds] != expected or kinds[0][1]:
            listed = ", ".join(kind for kind, _ in kinds)
            raise ValueError(
                f"{name} must hold a Transformer, a Pooling and perhaps a Normalize, got {listed}; "
                "export the encoder alone, from a folder without modules.json."
            )
        return SentenceHead(_poolings(name, kinds[1][1]), len(kinds) == 3)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}/modules.json is damaged: {reason(error)}.") from error


def copy_modules(name: str, folder: Path) -> None:
    """Copies what stands behind the encoder of a folder of sentence-transformers, if it is one; how
    long a text may be is then what the tokenizer says.

    Raises:
        ValueError: If a file cannot be read, the encoder lies in a folder of its own, or a module
            lies outside.
    """
    modules = _read(name, "modules.json")
    if modules is None:
        return
    if not modules or modules[0].get("path"):
        raise ValueError(
            f"{name} must hold its encoder beside modules.json, got it in a folder of its own; "
            "convert it with nystromer.nystromize(SentenceTransformer(...)) and save_pretrained."
        )
    for module in modules[1:]:
        if not (folder / module["path"]).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{name}/modules.json must name folders beside it, got {module['path']}; change it."
            )
    _write(modules, folder / "modules.json")
    settings = _read(name, "sentence_bert_config.json") or {}
    settings.pop("max_seq_length", None)
    _write(settings, folder / "sentence_bert_config.json")
    general = _read(name, "config_sentence_transformers.json")
    if general is not None:
        _write(general, folder / "config_sentence_transformers.json")
    for module in modules[1:]:
        (folder / module["path"]).mkdir(parents=True)
        for file in MODULE_FILES:
            path = _path(name, f"{module['path']}/{file}")
            if path is not None:
                shutil.copyfile(path, folder / module["path"] / file)


def _write(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _poolings(name: str, folder: str) -> tuple[str, ...]:
    file = f"{folder}/config.json"
    config = _read(name, file) or {}
    modes = config.get("pooling_mode") or [
        mode for field, mode in LEGACY.items() if config.get(field)
    ]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    wrong = [mode for mode in modes if mode not in POOLINGS]
    if wrong or not modes or not config.get("include_prompt", True):
        got = wrong[0] if wrong else "one that leaves the prompt out" if modes else "none"
        raise ValueError(
            f"The pooling in {name}/{file} must be one of {', '.join(POOLINGS)}, got {got}; export "
            "the encoder alone, from a folder without modules.json."
        )
    return modes


def _read(name: str, file: str) -> Any:
    """Returns the content of a JSON file of a folder or Hub name, or None if there is no such file.

    Raises:
        ValueError: If it is no JSON.
    """
    path = _path(name, file)
    try:
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}/{file} cannot be read: {reason(error)}.") from error


def _path(name: str, file: str) -> str | None:
    """Returns where a file of a folder or Hub name lies, or None if there is none."""
    options: dict[str, Any] = dict.fromkeys(
        ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
    )
    return cached_file(name, file, **options)
