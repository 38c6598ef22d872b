"""Exports an encoder from files: what `nystromer export` does."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForSequenceClassification

from nystromer.export import agreement, graphs
from nystromer.export.agreement import TOLERANCE, Agreement, Runtime
from nystromer.export.embedder import Embedder
from nystromer.export.readme import readme
from nystromer.hf.conversion.plan import Plan
from nystromer.hf.positions import num_positions
from nystromer.recipes.files.outputs import new_folder
from nystromer.recipes.inputs.models import check_vocabulary, load_config, load_model
from nystromer.recipes.inputs.options import check_one_of
from nystromer.recipes.inputs.sentences import read_sentence_head
from nystromer.recipes.inputs.tokenizers import load_tokenizer

OLDEST_OPSET = 18
NO_LIMIT = 2**20  # tokens, of a model whose positions are computed
NEEDS = {  # packages, and the oldest versions that were tried
    "onnx": {"onnx": "1.18", "onnxscript": "0.5", "onnxruntime": "1.22"},
    "openvino": {"onnx": "1.18", "onnxscript": "0.5", "openvino": "2025.4"},
    "torch": {},
}
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
RUNTIMES: dict[str, Callable[[Path], Runtime]] = {
    "onnx": agreement.onnx_runtime,
    "openvino": agreement.openvino_runtime,
    "torch": agreement.torch_runtime,
}


@dataclass(frozen=True)
class Exported:
    """Says what was written, and how close it is to torch.

    float32: The graph before its weights became int8.
    int8: After that, or None.
    bytes: The size of all files.
    """

    float32: Agreement
    int8: Agreement | None
    bytes: int


def export_encoder(
    name: str,
    output: Path,
    *,
    to: str = "onnx",
    quantize: str | None = None,
    exact: bool = False,
    max_length: int | None = None,
    opset: int = graphs.OPSET,
) -> Exported:
    """Writes an encoder for another runtime, its tokenizer and a README that runs both.

    The folder appears whole, and only after the graph agreed with torch.

    Args:
        name: The folder or Hub name of a converted encoder, a Nyströmformer, or a classifier.
        output: The new folder.
        to: "onnx", "openvino" or "torch".
        quantize: None, or "int8" for the weights of linear layers, with ONNX alone.
        exact: Whether a model with exact attention is exported as it is.
        max_length: The tokens to which the tokenizer cuts a text; None means the positions.
        opset: The version of ONNX's operators.

    Raises:
        ValueError: If the model cannot be read, was never converted and `exact` is not set, has
            fewer positions than max_length, an option is unknown, or the output exists.
        ImportError: If a package is missing or too old.
        NotImplementedError: If a clustered layer may have fewer tokens than clusters.
        FloatingPointError: If the graph says something else than torch.
    """
    _check_options(to, quantize, opset)
    with new_folder(output) as partial:
        config = load_config(name)
        refuse_unconverted(name, config, exact)
        classifies = "ForSequenceClassification" in str((config.architectures or [""])[0])
        kind = AutoModelForSequenceClassification if classifies else AutoModel
        model = load_model(kind, name, new_head=not classifies)
        tokenizer = load_tokenizer(name)
        check_vocabulary(model, tokenizer, name)
        positions = num_positions(model.base_model)
        tokenizer.model_max_length = _length(config, name, positions, max_length)
        head = None if classifies else read_sentence_head(name)
        embedder = Embedder(model, head, tuple(tokenizer.model_input_names))
        file = partial / FILES[to]
        if to == "onnx":
            graphs.export_onnx(embedder, file, opset=opset)
        elif to == "openvino":
            graphs.export_openvino(embedder, file)
        else:
            graphs.export_torch(embedder, file)
        float32 = agreement.agreement(embedder, RUNTIMES[to](file), positions)
        if not float32.difference <= TOLERANCE:
            raise FloatingPointError(
                f"The exported graph differs from torch by {float32.difference:.2g}, more than "
                f"{TOLERANCE}; nothing was written."
            )
        int8 = None
        if quantize is not None:
            graphs.quantize_int8(file)
            int8 = agreement.agreement(embedder, RUNTIMES[to](file), positions)
        save_tokenizer(tokenizer, partial)
        (partial / "README.md").write_text(readme(embedder, tokenizer, to, name), encoding="utf-8")
        size = sum(x.stat().st_size for x in partial.rglob("*") if x.is_file())
    return Exported(float32, int8, size)


def refuse_unconverted(name: str, config: Any, exact: bool) -> None:
    """Refuses a model with exact attention unless it is asked for, and clusters without a token.

    Raises:
        ValueError: If the model was never converted.
        NotImplementedError: If a sequence may have fewer tokens than clusters.
    """
    plan = getattr(config, "nystrom", None)
    if plan is None and config.model_type != "nystromformer" and not exact:
        raise ValueError(
            f"{name} was never converted, so its attention costs the square of the length; run "
            "`nystromer convert` first, or write --exact to export it as it is."
        )
    for layer in Plan.from_dict(plan).layers if plan else ():
        fewest = max(layer.num_query_clusters, layer.num_key_clusters)
        if layer.attention == "clustered" and layer.exact_below <= fewest:
            raise NotImplementedError(
                f"{name} has clustered attention for {layer.exact_below} tokens and more in "
                f"{layer.name}, and a graph needs more than its {fewest} clusters; leave out "
                "min_length when converting."
            )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer that cuts a text and pads a batch, whoever reads its file."""
    if tokenizer.is_fast:
        library = tokenizer.backend_tokenizer
        library.enable_truncation(tokenizer.model_max_length)
        if tokenizer.pad_token_id is not None:
            library.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    tokenizer.save_pretrained(folder)


def _length(config: Any, name: str, positions: int | None, length: int | None) -> int:
    """Returns to how many tokens the tokenizer cuts a text.

    Raises:
        ValueError: If it is below 1 or above the positions.
    """
    known = positions or getattr(config, "max_position_embeddings", None) or NO_LIMIT
    if length is not None and not 1 <= length <= known:
        raise ValueError(
            f"`--max-length` must lie in 1 ... {known}, for {name} has as many positions, got "
            f"{length}; nystromer.hf.resize_positions adds some."
        )
    return length or known


def _check_options(to: str, quantize: str | None, opset: int) -> None:
    """Checks what can be checked before anything is loaded.

    Raises:
        ValueError: If an option is unknown, or they do not go together.
        ImportError: If a package is missing or too old.
    """
    check_one_of("--to", to, FILES)
    if quantize is not None:
        check_one_of("--quantize", quantize, ["int8"])
        if to != "onnx":
            raise ValueError(f"`--quantize` is for --to onnx, got --to {to}; leave it out.")
    if opset < OLDEST_OPSET:
        raise ValueError(
            f"`--opset` must be at least {OLDEST_OPSET}, the oldest that torch exports to, got "
            f"{opset}; leave it out for {graphs.OPSET}."
        )
    for package, oldest in NEEDS[to].items():
        check_package(package, oldest, to)
    if to == "torch" and graphs.compiler() is None:
        raise ValueError(
            "`--to torch` compiles the model and needs a C++ compiler, got none; install g++ or "
            "clang++, or write --to onnx."
        )


def check_package(package: str, oldest: str, to: str) -> None:
    """Checks that a package is there and new enough.

    Raises:
        ImportError: If it is not.
    """
    try:
        importlib.import_module(package)
        version = metadata.version(package)
    except ImportError as error:
        raise ImportError(
            f"`--to {to}` needs {package}, which is not installed: pip install nystromer[export]."
        ) from error
    if _numbers(version) < _numbers(oldest):
        raise ImportError(
            f"`--to {to}` needs {package} {oldest} or newer, got {version}: pip install --upgrade "
            f"{package}."
        )


def _numbers(version: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", version)[:3]]
