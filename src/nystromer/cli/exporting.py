"""The command that writes an encoder for other runtimes: `nystromer export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[
        str, typer.Argument(help="The folder or Hub name of a converted encoder or classifier.")
    ],
    output: Annotated[Path, typer.Option(help="The new folder.")],
    to: Annotated[
        str,
        typer.Option(help="The format: onnx, openvino, or torch (AOTInductor, needs a compiler)."),
    ] = "onnx",
    quantize: Annotated[
        str | None, typer.Option(help="int8 for the weights of the linear layers; ONNX alone.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Exports a model with exact attention as it is.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option(help="The tokens at which a text is cut; all positions if none.")
    ] = None,
    opset: Annotated[int, typer.Option(help="The version of ONNX's operators.")] = 20,
) -> None:
    """Writes an encoder for a runtime without torch, with its tokenizer and a README that runs it.

    Any number of texts of any length up to the model's positions can be read. The pooling and the
    normalisation of a sentence-transformers folder are part of the graph.

    The folder appears only after the graph agreed with torch on padded texts of 37, 512, 1,001 and
    4,096 tokens. Takes some minutes.
    """
    from nystromer.export.encoder import export_encoder

    found = export_encoder(
        model,
        output,
        to=to,
        quantize=quantize,
        exact=exact,
        max_length=max_length,
        opset=opset,
    )
    typer.echo(f"Largest difference to torch: {found.float32.difference:.1g}")
    if found.int8 is not None:
        typer.echo(
            f"With int8 weights: {found.int8.difference:.1g}, smallest cosine to torch "
            f"{found.int8.cosine:.4f}"
        )
    typer.echo(f"Written: {output} ({found.bytes / 1e6:.1f} MB)")
