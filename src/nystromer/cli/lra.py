"""The commands of the Long Range Arena: `nystromer lra` and `nystromer lra-data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TASK_HELP = "The task: listops, text, retrieval, imdb-same-movie, image or pathfinder."
DATA_HELP = "The folder of the task's files; else generated (listops, pathfinder) or from the Hub."
Cache = Annotated[
    Path | None, typer.Option(help="The folder where data sets are kept; the user's cache if none.")
]
Rows = Annotated[int | None, typer.Option(help="The most training rows, to try things out.")]
EvalRows = Annotated[int | None, typer.Option(help="The most rows to validate, and to test.")]


def lra(
    task: Annotated[str, typer.Argument(help=TASK_HELP)],
    output: Annotated[Path, typer.Option(help="The new folder for model, metrics and curves.")],
    attention: Annotated[
        str,
        typer.Option(
            help="The attention: nystrom, exact, linformer, performer, linear, reformer, flare, "
            "convolution or none."
        ),
    ] = "nystrom",
    data_dir: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    cache: Cache = None,
    fraction: Annotated[
        float, typer.Option(help="The share of the published number of steps.")
    ] = 1.0,
    steps: Annotated[
        int | None, typer.Option(help="The number of steps, instead of a fraction.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="The rows of a step; the published if none.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="The parts in which a batch is computed.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="The learning rate; the published 1e-4 if none.")
    ] = None,
    num_landmarks: Annotated[
        int, typer.Option(help="The landmarks M of Nyström attention, the latents of FLARE.")
    ] = 64,
    rows: Rows = None,
    eval_rows: EvalRows = None,
    looks: Annotated[int, typer.Option(help="How often the validation rows are looked at.")] = 20,
    seed: Annotated[int, typer.Option(help="The seed of weights and order, not of the data.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Goes on with the run in --output.")
    ] = False,
) -> None:
    """Trains one attention on one task of the Long Range Arena, as the paper did.

    The model has two layers of width 64; warm-up and decay are cut with the steps. A batch that
    does not fit into memory: --accumulate 2. Fewer than 100 steps are a trial: no more rows are
    made than it trains on, and 100 to validate and to test.
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
    processes: Annotated[
        int | None, typer.Option(help="The processes that make rows; as many as cores if none.")
    ] = None,
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
