"""The commands that explain bags: `nystromer mil heatmap` and `mil faithfulness`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nystromer.cli.mil import watched

RUN_HELP = "The --output of mil train, or a file with the weights of a TransMIL."


def heatmap(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    features: Annotated[Path, typer.Argument(help="A feature file, or a folder of them.")],
    slide: Annotated[
        Path | None, typer.Option(help="The slide itself, or a folder of slides.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="single, gradient, ig, attention or rollout.")
    ] = "single",
    layer: Annotated[
        int | None, typer.Option(help="The layer of attention, from 1; the last if none.")
    ] = None,
    head: Annotated[
        int | None, typer.Option(help="The head of attention, from 1; all of them if none.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="What to explain; the predicted class if none.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="The micrometres a pixel, if the slide says none.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The new folder.")] = Path("heatmaps"),
) -> None:
    """Shows which patches made the models say what they say.

    Writes of every bag a table, an .h5 with attention_scores and coords as CLAM does, a
    picture, and GeoJSON for QuPath; with --slide also the highest and lowest patches.
    `nystromer mil faithfulness` measures how far a method can be trusted.
    """
    from nystromer.recipes.slides.heatmap import heatmap as write_maps

    count = write_maps(
        run,
        features,
        output,
        slide=slide,
        method=method,
        layer=layer,
        head=head,
        class_name=class_name,
        mpp=mpp,
        track=watched,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(f"{count:,} maps.\nWritten: {output}")


def faithfulness(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    features: Annotated[Path, typer.Argument(help="A feature file, or a folder of them.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="The table of slides and classes; what is predicted is explained if none."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Those to measure, with commas; all if none.")
    ] = None,
    draws: Annotated[int, typer.Option(help="The random maps of every bag.")] = 5,
    output: Annotated[Path, typer.Option(help="The new folder.")] = Path("faithfulness"),
) -> None:
    """Measures how far maps can be trusted, against random ones.

    Patches are taken away, the most important first and the least important first: between a
    right map's two curves there is a large area, between a random one's there is none. Where
    patches are annotated (torchmil's patch_labels), it also shows the AUC against them.
    """
    from nystromer.recipes.slides.faithfulness import faithfulness as measure

    names = [x.strip() for words in method or [] for x in words.split(",")]
    lines = measure(run, features, output, labels=labels, methods=names, draws=draws, track=watched)
    table = Table(box=SIMPLE)
    for name in ("method", "area", "beats random", "AUC of patches"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for x in lines:
        beats = "" if x.method == "random" else "yes" if x.beats_random else "no"
        table.add_row(x.method, f"{x.area:.3f}", beats, "–" if x.auc is None else f"{x.auc:.3f}")
    Console().print(table)
    typer.echo(f"Written: {output}")
