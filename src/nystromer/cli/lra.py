"""`nystromer lra` and `nystromer lra-data`: the Long Range Arena."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TASK_HELP = "listops, text, retrieval, imdb-same-movie, image or pathfinder."
DATA_HELP = "Where the task's files are; else generated (listops, pathfinder) or from the Hub."
Cache = Annotated[
    Path | None, typer.Option(help="Where data sets are kept; the user's cache folder if none.")
]
Rows = Annotated[int | None, typer.Option(help="Training rows at most; to try things out.")]
EvalRows = Annotated[int | None, typer.Option(help="Validation and test rows at most.")]


def lra(
    task: Annotated[str, typer.Argument(help=TASK_HELP)],
    output: Annotated[Path, typer.Option(help="New folder for model, metrics and curves.")],
    attention: Annotated[
        str,
        typer.Option(
            help="nystrom, exact, linformer, performer, linear, reformer, convolution or none."
        ),
    ] = "nystrom",
    data_dir: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    cache: Cache = None,
    fraction: Annotated[float, typer.Option(help="Of the published number of steps.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of a fraction.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step; else published.")] = None,
    accumulate: Annotated[int, typer.Option(help="Parts of a batch, one after the other.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Else the published 1e-4.")] = None,
    num_landmarks: Annotated[int, typer.Option(help="Landmarks M, of nystrom.")] = 64,
    rows: Rows = None,
    eval_rows: EvalRows = None,
    looks: Annotated[int, typer.Option(help="Evaluations on the validation rows.")] = 20,
    seed: Annotated[int, typer.Option(help="Of weights and order, not of the data.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run there.")] = False,
) -> None:
    """Trains one attention on one task of the Long Range Arena, as the paper did.

    The model has two layers of width 64; warm-up and decay are cut with the steps. A batch that
    does not fit into memory: --accumulate 2.
    """
    from nystromer.recipes.lra.training import run_task

    metrics = run_task(
        task,
        attention,
        output,
        data_dir=data_dir,
        cache=cache,
        fraction=fraction,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        num_landmarks=num_landmarks,
        rows=rows,
        eval_rows=eval_rows,
        looks=looks,
        seed=seed,
        resume=resume,
    )
    for note in metrics["notes"]:
        typer.echo(note)
    typer.echo(
        f"{task}, {attention}: {metrics['accuracy']:.1%} of {metrics['rows']['test']:,} test rows "
        f"after {metrics['steps']:,} steps.\nWritten: {output}"
    )


def lra_data(
    task: Annotated[str, typer.Argument(help=TASK_HELP)],
    data_dir: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    cache: Cache = None,
    rows: Rows = None,
    eval_rows: EvalRows = None,
    processes: Annotated[int | None, typer.Option(help="To generate with; else all cores.")] = None,
) -> None:
    """Makes or reads the data of a task, which `nystromer lra` would do as well."""
    from nystromer.recipes.lra.data import load
    from nystromer.recipes.lra.training import find_task

    find_task(task)
    data, about = load(
        task, data_dir, cache=cache, rows=rows, eval_rows=eval_rows, processes=processes
    )
    for note in about["notes"]:
        typer.echo(note)
    counts = ", ".join(f"{len(found):,} {split}" for split, found in data.items())
    typer.echo(f"{task}: {counts} rows, fingerprint {about['fingerprint']}.")
