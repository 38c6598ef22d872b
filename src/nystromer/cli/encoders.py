"""The commands for encoders that exist: `nystromer convert`, `inspect` and `calibrate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from nystromer.hf.calibration.fidelity import Fidelity
    from nystromer.hf.calibration.results import Calibration


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A .model file of mlpen/Nystromformer, or the folder or Hub name of an encoder."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The new folder, which from_pretrained will read.")],
    method: Annotated[
        str, typer.Option(help="The new attention: nystrom or clustered.")
    ] = "nystrom",
    num_landmarks: Annotated[int, typer.Option(help="The landmarks M of Nyström attention.")] = 64,
    num_query_clusters: Annotated[
        int, typer.Option(help="The query clusters G of clustered attention.")
    ] = 64,
    num_key_clusters: Annotated[
        int, typer.Option(help="The key clusters M of clustered attention.")
    ] = 16,
    num_exact_keys: Annotated[
        int, typer.Option(help="The exact keys T of clustered attention.")
    ] = 48,
    positions: Annotated[
        int | None,
        typer.Option(help="The tokens that a model with learnt positions shall read."),
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="The heads H of a .model file that has no convolution.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="The plan.json of `nystromer calibrate`.")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Trains the converted encoder on --text.")
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="The files of text to train on (.txt, .jsonl; .gz, .xz)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="The steps of the training, of 4 passages each; 300 if none.")
    ] = None,
) -> None:
    """Converts an encoder to Nyström or clustered attention, or a checkpoint of the original
    repository to transformers' files.

    SOURCE is a .model file of the original Nyströmformer repository, or the folder (or Hub name) of
    a transformers encoder. An encoder is swapped in every layer, or as --plan says.

    With --distill the swapped encoder learns on your text to say what the exact one says. An
    interrupted run goes on when the same command is given again.
    """
    from nystromer.hf.conversion.nystromize import choice_of
    from nystromer.recipes.convert.encoder import convert_encoder, convert_original, distill_encoder

    for option, value in (("--text", text), ("--steps", steps)):
        if value and not distill:
            raise ValueError(
                f"`{option}` is for a training, got it without --distill; add --distill."
            )
    if Path(source).is_file() or Path(source).suffix in (".model", ".cp"):
        if distill or plan is not None or positions is not None or method != "nystrom":
            raise ValueError(
                "`--plan`, `--positions`, `--distill` and `--method` are for encoders with exact "
                f"attention, got {source}, a checkpoint of the original repository; leave them out."
            )
        convert_original(Path(source), output, num_landmarks=num_landmarks, num_heads=num_heads)
        typer.echo(f"Written: {output}")
        return
    if plan is not None and method != "nystrom":
        raise ValueError(
            f"`--plan` says what each layer becomes, got --method {method} beside it; leave one "
            "out."
        )
    if num_heads is not None:
        raise ValueError(
            f"`--num-heads` is for a .model file, got {source}, whose config says it; leave it out."
        )
    if positions is not None and distill:
        raise ValueError(
            f"`--positions` is for a conversion without training, got {positions} and --distill; "
            "leave one out."
        )
    choice = choice_of(method, num_landmarks, num_query_clusters, num_key_clusters, num_exact_keys)
    if distill:
        from nystromer.recipes.convert.distill import Settings

        settings = Settings() if steps is None else Settings(steps=steps)
        found = distill_encoder(source, text or [], output, choice, plan=plan, settings=settings)
        Console().print(_fidelity_table(found.stages))
    else:
        convert_encoder(source, output, choice, plan=plan, positions=positions)
    typer.echo(f"Written: {output}")


def inspect(
    model: Annotated[str, typer.Argument(help="The folder or Hub name of an encoder.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="The files of text to look at; Python's own help if none."),
    ] = None,
    num_landmarks: Annotated[int, typer.Option(help="The landmarks M.")] = 64,
    output: Annotated[Path, typer.Option(help="The new .png file for the figure.")] = Path(
        "attention.png"
    ),
) -> None:
    """Shows what a model's attention is like: which layers can be swapped, at what error and
    saving."""
    from nystromer.recipes.convert.encoder import calibrate_encoder
    from nystromer.recipes.files.outputs import new_file

    with new_file(output, ".png") as figure:
        _show(calibrate_encoder, model, text, figure, num_landmarks=num_landmarks)
    typer.echo(f"Written: {output}")


def calibrate(
    model: Annotated[str, typer.Argument(help="The folder or Hub name of an encoder.")],
    text: Annotated[
        list[Path], typer.Option(help="The files of text like that which the model will read.")
    ],
    output: Annotated[
        Path, typer.Option(help="The new .json file for the plan; a .png is drawn beside it.")
    ],
    num_landmarks: Annotated[int, typer.Option(help="The landmarks M.")] = 64,
    max_exact_layers: Annotated[
        int | None, typer.Option(help="The most layers' worth of heads that may stay exact.")
    ] = None,
    max_keys: Annotated[
        float | None,
        typer.Option(help="Or the most keys that a query is scored with, mean of the layers."),
    ] = None,
    max_time: Annotated[
        float | None, typer.Option(help="Or the largest share of exact attention's time, say 0.5.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="The number of tokens for which keys and time are counted.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="The largest 1 - cosine to the exact embedding.")
    ] = None,
) -> None:
    """Plans another attention for an encoder: Nyström, clustered or exact, layer by layer.

    With a budget of keys or time all three are tried; else Nyström attention, and exact heads.

    Give the plan to `nystromer convert --plan`, or to nystromize(plan=...).
    """
    from nystromer.recipes.convert.encoder import calibrate_encoder
    from nystromer.recipes.files.outputs import new_file

    drawn = output.with_suffix(".png")
    with new_file(output, ".json") as plan, new_file(drawn, ".png") as figure:
        found = _show(
            calibrate_encoder,
            model,
            text,
            figure,
            num_landmarks=num_landmarks,
            max_exact_layers=max_exact_layers,
            max_keys=max_keys,
            max_time=max_time,
            length=length,
            max_error=max_error,
        )
        plan.write_text(found.plan.to_json(), encoding="utf-8")
    typer.echo(f"Written: {drawn}\nWritten: {output}")


def _show(
    measure: Callable, model: str, text: list[Path] | None, figure: Path, **options: Any
) -> Calibration:
    from nystromer.hf.calibration.figures import calibration_figure
    from nystromer.hf.calibration.report import summary, table

    found = measure(model, text or [], **options)
    Console().print(table(found))
    typer.echo(summary(found))
    calibration_figure(found).savefig(figure)
    return found


def _fidelity_table(stages: dict[str, Fidelity]) -> Table:
    table = Table(caption="against the exact twin, on held-out passages", box=SIMPLE)
    for name in ("", "cosine", "worst", "error of hidden states"):
        table.add_column(name, justify="right" if name else "left")
    for name, x in stages.items():
        table.add_row(name, f"{x.cosine:.4f}", f"{x.worst_cosine:.4f}", f"{x.error:.3f}")
    return table
