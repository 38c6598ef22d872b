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
        str, typer.Argument(help="A .model file of mlpen/Nystromformer, or an encoder: see below.")
    ],
    output: Annotated[Path, typer.Option(help="New folder, which from_pretrained will read.")],
    method: Annotated[str, typer.Option(help="nystrom or clustered.")] = "nystrom",
    num_landmarks: Annotated[int, typer.Option(help="Nyström: landmarks M.")] = 64,
    num_query_clusters: Annotated[int, typer.Option(help="Clustered: query clusters G.")] = 64,
    num_key_clusters: Annotated[int, typer.Option(help="Clustered: key clusters M.")] = 16,
    num_exact_keys: Annotated[int, typer.Option(help="Clustered: exact keys T.")] = 48,
    num_heads: Annotated[
        int | None, typer.Option(help="Heads H, for a .model file without convolution.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json of `nystromer calibrate`.")] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Train the converted encoder on --text.")
    ] = False,
    text: Annotated[
        list[Path] | None, typer.Option(help="Text files (.txt, .jsonl; .gz, .xz) to train on.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the training, 4 passages each.")] = 300,
) -> None:
    """Nyström or clustered attention in an encoder, or a checkpoint of the original repository.

    SOURCE is a .model file of the original Nyströmformer repository, or the folder (or Hub name) of
    a transformers encoder. An encoder is swapped in every layer, or as --plan says.

    With --distill the swapped encoder learns on your text to say what the exact one says. An
    interrupted run goes on when the same command is given again.
    """
    from nystromer.hf.conversion.nystromize import choice_of
    from nystromer.recipes.convert.encoder import convert_encoder, convert_original, distill_encoder

    if text and not distill:
        raise ValueError("`--text` is for a training, got it without --distill; add --distill.")
    if Path(source).is_file() or Path(source).suffix in (".model", ".cp"):
        if distill or plan is not None or method != "nystrom":
            raise ValueError(
                f"`--plan`, `--distill` and `--method` are for encoders with exact attention, got "
                f"{source}, a checkpoint of the original repository; leave them out."
            )
        convert_original(Path(source), output, num_landmarks=num_landmarks, num_heads=num_heads)
        typer.echo(f"Written: {output}")
        return
    if plan is not None and method != "nystrom":
        raise ValueError(
            f"`--plan` says what each layer becomes, got --method {method} beside it; leave one "
            "out."
        )
    choice = choice_of(method, num_landmarks, num_query_clusters, num_key_clusters, num_exact_keys)
    if distill:
        from nystromer.recipes.convert.distill import Settings

        settings = Settings(steps=steps)
        found = distill_encoder(source, text or [], output, choice, plan=plan, settings=settings)
        Console().print(_fidelity_table(found.stages))
    else:
        convert_encoder(source, output, choice, plan=plan)
    typer.echo(f"Written: {output}")


def inspect(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a transformers encoder.")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Text to look at; Python's own help if none.")
    ] = None,
    num_landmarks: Annotated[int, typer.Option(help="Landmarks M.")] = 64,
    output: Annotated[Path, typer.Option(help="The figure, a new .png file.")] = Path(
        "attention.png"
    ),
) -> None:
    """What a model's attention is like: which layers can be swapped, at what error and saving."""
    from nystromer.recipes.convert.encoder import calibrate_encoder

    _show(calibrate_encoder, model, text, output, num_landmarks=num_landmarks)


def calibrate(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a transformers encoder.")],
    text: Annotated[list[Path], typer.Option(help="Text like that which the model will read.")],
    output: Annotated[Path, typer.Option(help="The plan, a new .json file; a .png beside it.")],
    num_landmarks: Annotated[int, typer.Option(help="Landmarks M.")] = 64,
    max_exact_layers: Annotated[
        int | None, typer.Option(help="How many layers' worth of heads may stay exact.")
    ] = None,
    max_keys: Annotated[
        float | None, typer.Option(help="Or: scored keys a query, mean of the layers.")
    ] = None,
    max_time: Annotated[
        float | None, typer.Option(help="Or: share of exact attention's time, say 0.5.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens for which keys and time are counted.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="1 - cosine to the exact embedding to stay below.")
    ] = None,
) -> None:
    """Plans another attention for an encoder: Nyström, clustered or exact, layer by layer.

    With a budget of keys or time all three are tried; else Nyström attention, and exact heads.

    Give the plan to `nystromer convert --plan`, or to nystromize(plan=...).
    """
    from nystromer.recipes.convert.encoder import calibrate_encoder

    _new_file("--output", output, ".json")
    found = _show(
        calibrate_encoder,
        model,
        text,
        output.with_suffix(".png"),
        num_landmarks=num_landmarks,
        max_exact_layers=max_exact_layers,
        max_keys=max_keys,
        max_time=max_time,
        length=length,
        max_error=max_error,
    )
    output.write_text(found.plan.to_json(), encoding="utf-8")
    typer.echo(f"Written: {output}")


def _show(
    measure: Callable, model: str, text: list[Path] | None, output: Path, **options: Any
) -> Calibration:
    from nystromer.hf.calibration.figures import calibration_figure
    from nystromer.hf.calibration.report import summary, table

    _new_file("--output", output, ".png")
    found = measure(model, text or [], **options)
    Console().print(table(found))
    typer.echo(summary(found))
    calibration_figure(found).savefig(output)
    typer.echo(f"Written: {output}")
    return found


def _new_file(option: str, path: Path, suffix: str) -> None:
    if path.exists() or path.suffix != suffix or not path.parent.is_dir():
        raise ValueError(f"`{option}` must be a new {suffix} file in a folder, got {path}.")


def _fidelity_table(stages: dict[str, Fidelity]) -> Table:
    table = Table(caption="against the exact twin, on held-out passages", box=SIMPLE)
    for name in ("", "cosine", "worst", "error of hidden states"):
        table.add_column(name, justify="right" if name else "left")
    for name, x in stages.items():
        table.add_row(name, f"{x.cosine:.4f}", f"{x.worst_cosine:.4f}", f"{x.error:.3f}")
    return table
