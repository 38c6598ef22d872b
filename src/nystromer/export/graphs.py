"""Makes files that runtimes read: ONNX, OpenVINO, a package of AOTInductor; and int8 weights."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromer.export.embedder import Embedder
from nystromer.hf.positions import num_positions
from nystromer.registration import of_torch_alone

OPSET = 20  # whose Gelu is one node


def export_onnx(embedder: Embedder, file: Path, *, opset: int = OPSET) -> None:
    """Writes the graph of an embedder as ONNX, for any batch and any length up to its positions.

    Args:
        embedder: The encoder and what stands behind it.
        file: The .onnx file.
        opset: The version of ONNX's operators, at least 18.
    """
    with _quiet():
        program = torch.onnx.export(
            _traced(embedder),
            (),
            dynamo=True,
            opset_version=opset,
            input_names=embedder.inputs,
            output_names=[embedder.output],
            optimize=False,  # takes minutes; the runtimes do it in seconds, but for `_tidy`
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no graph.")
        _tidy(program.model)
        program.save(file)


def _tidy(model: Any) -> None:
    """Computes what is constant in an ONNX graph, casts to another tensor's dtype before all, which
    ONNX Runtime has no operation for. Drops the notes on each node, which name files of this
    machine and take more space than the graph."""
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    for node in model.graph:
        node.metadata_props.clear()


def export_openvino(embedder: Embedder, file: Path) -> None:
    """Writes the graph as OpenVINO's .xml file, with the weights beside it in float32."""
    import openvino

    onnx = file.with_suffix(".onnx")
    export_onnx(embedder, onnx)
    openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)
    onnx.unlink()


def export_torch(embedder: Embedder, file: Path) -> None:
    """Compiles the graph with AOTInductor into a .pt2 package, for processors like this one."""
    with _quiet():
        torch._inductor.aoti_compile_and_package(_traced(embedder), package_path=str(file))


def quantize_int8(file: Path) -> None:
    """Turns the weights of the linear layers of an ONNX file into int8; activations are quantised
    when they are computed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_name(f"float32-{file.name}")
    file.rename(whole)
    with _quiet():
        quantize_dynamic(
            whole,
            file,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    whole.unlink()


def compiler() -> str | None:
    """Returns the C++ compiler that AOTInductor will call, or None if there is none."""
    return shutil.which("g++") or shutil.which("clang++")


def _traced(embedder: Embedder) -> torch.export.ExportedProgram:
    """Traces the embedder: one graph of torch's own operations, for all batches and lengths."""
    positions = num_positions(embedder.model.base_model)
    tokens = torch.export.Dim("tokens", max=positions) if positions else torch.export.Dim("tokens")
    shape = {0: torch.export.Dim("batch"), 1: tokens}
    example = _example(embedder, min(positions or 67, 67))
    traced: Any = torch.fx.experimental._config
    with torch.no_grad(), of_torch_alone(), traced.patch(backed_size_oblivious=True):
        return torch.export.export(
            embedder,
            example,
            dynamic_shapes=(tuple(shape for _ in example),),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _example(embedder: Embedder, length: int) -> tuple[Tensor, ...]:
    """Makes up inputs of two rows, the second with padding."""
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    ids = torch.ones_like(mask)
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(made[name] for name in embedder.inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporters report of their own progress away from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
