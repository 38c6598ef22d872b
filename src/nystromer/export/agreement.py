"""Compares an exported graph with torch on ragged, padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nystromer.export.embedder import Embedder

LENGTHS = (37, 512, 1001, 4096)
TOLERANCE = 1e-4  # of an output whose largest number is 1, or as large as that number
Runtime = Callable[[dict[str, Any]], Any]  # from the named inputs to the output


@dataclass(frozen=True)
class Agreement:
    """Says how close a graph is to torch, over all batches.

    difference: The largest, divided by the largest number of the output where that is above 1.
    cosine: The smallest between two vectors of the output.
    """

    difference: float
    cosine: float


def agreement(embedder: Embedder, run: Runtime, positions: int | None) -> Agreement:
    """Compares the graph with the embedder at `LENGTHS` in one padded batch, and at one length."""
    differences, cosines = [], []
    for lengths in batches(positions):
        inputs = ragged(embedder, lengths)
        with torch.no_grad():
            wanted = embedder(*inputs.values()).double()
        found = torch.from_numpy(np.array(run({k: x.numpy() for k, x in inputs.items()}))).double()
        scale = max(1.0, float(wanted.abs().max()))
        differences.append(float((found - wanted).abs().max()) / scale)
        real = wanted.abs().sum(-1) > 0
        cosines.append(float(torch.cosine_similarity(found[real], wanted[real], -1).min()))
    return Agreement(float(np.max(differences)), min(cosines))


def batches(positions: int | None) -> Iterator[tuple[int, ...]]:
    """Yields the lengths of each batch: those that the model can read, or all that it can."""
    longest = min(positions or LENGTHS[-1], LENGTHS[-1])
    yield (*[n for n in LENGTHS if n < longest], longest)
    yield (min(LENGTHS[0], longest),)


def ragged(embedder: Embedder, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Makes up texts of these lengths in one batch, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = embedder.model.config.vocab_size
    size = (len(lengths), max(lengths))
    mask = torch.arange(size[1]) < torch.tensor(lengths)[:, None]
    ids = torch.randint(vocabulary // 2, vocabulary, size, generator=generator)
    ids = ids.masked_fill(~mask, embedder.model.config.pad_token_id or 0)
    made = {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": 0 * ids}
    return {name: made[name] for name in embedder.inputs}


def onnx_runtime(file: Path) -> Runtime:
    """Returns what runs an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def openvino_runtime(file: Path) -> Runtime:
    """Returns what runs an OpenVINO file on the CPU, in float32."""
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(file, "CPU", hint)
    return lambda inputs: model(inputs)[0]


def torch_runtime(file: Path) -> Runtime:
    """Returns what runs a package of AOTInductor."""
    model = torch._inductor.aoti_load_package(str(file))

    def run(inputs: dict[str, Any]) -> Any:
        with torch.no_grad():
            return model(*(torch.from_numpy(x) for x in inputs.values())).numpy()

    return run
