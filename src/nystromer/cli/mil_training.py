"""The commands that train on bags of patches and predict: `nystromer mil train` and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nystromer.cli.mil import watched


def train(
    features: Annotated[
        Path, typer.Option(help="The feature files, or one table with a row a patch.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="The table of slides and classes or survival; if none, --features."),
    ] = None,
    slides: Annotated[
        Path | None, typer.Option(help="STAMP: the slide table, if --labels is the clinical one.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The column of the class, if it is not called label.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(help="The column of the survival time, if there are several.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task: classification or survival.")] = (
        "classification"
    ),
    bag: Annotated[
        str, typer.Option(help="A bag: slide, or patient for all slides of one.")
    ] = "slide",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Goes on without slides that lack something.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="transmil, transmil-legacy, transmil-exact, abmil, mean, max; several with commas."
        ),
    ] = None,
    embed_dim: Annotated[
        int | None, typer.Option(help="The width inside the models; 512 if none.")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="The dropout; 0.1 for transmil, else 0, if none.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="The parts of cross-validation; 5.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Own splits instead: a file, or a folder of splits_0.csv.")
    ] = None,
    split_seed: Annotated[int, typer.Option(help="The seed of the folds.")] = 0,
    validation: Annotated[
        float, typer.Option(help="The share of the rest that watches; 0 trains all epochs.")
    ] = 0.2,
    seeds: Annotated[int, typer.Option(help="The trainings of every fold.")] = 3,
    epochs: Annotated[int, typer.Option(help="The most passes over the training bags.")] = 200,
    patience: Annotated[
        int, typer.Option(help="The epochs without a lower validation loss before it stops.")
    ] = 10,
    batch_size: Annotated[int, typer.Option(help="The bags of an update.")] = 1,
    device_batch: Annotated[
        int | None, typer.Option(help="The bags at a time; 1, and all for --loss cox, if none.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="The learning rate.")] = 2e-4,
    weight_decay: Annotated[float, typer.Option(help="The decay; not of biases, norms.")] = 1e-5,
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="Weighs bags by how rare their class is.")
    ] = False,
    loss: Annotated[
        str | None, typer.Option(help="The loss of survival: nll or cox; nll if none.")
    ] = None,
    bins: Annotated[int, typer.Option(help="The intervals of time of nll.")] = 4,
    resume: Annotated[
        bool, typer.Option("--resume", help="Goes on with the interrupted run in --output.")
    ] = False,
    output: Annotated[Path, typer.Option(help="The new folder for models and tables.")] = Path(
        "slides"
    ),
) -> None:
    """Trains models of bags, cross-validated, and shows one table of all of them.

    nystromer mil train --features features --labels labels.csv --model transmil,abmil

    An interrupted run goes on to the same result when the command is given again with --resume.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "output")}
    names = [x.strip() for words in options.pop("model") or ["transmil"] for x in words.split(",")]
    training = _training()
    from nystromer.recipes.runs.claim import is_first
    from nystromer.recipes.slides.settings import Settings

    metrics = training.train_slides(
        Settings(models=tuple(names), **options),
        output,
        resume=resume,
        track=watched,
        say=lambda line: typer.echo(line, err=True),
    )
    if not is_first():
        return  # one of several processes speaks
    Console().print(_table(metrics))
    typer.echo(f"Written: {output}")


def predict(
    run: Annotated[Path, typer.Argument(help="The --output of mil train, or a model's in it.")],
    features: Annotated[Path, typer.Argument(help="The feature files, or one table of patches.")],
    output: Annotated[Path, typer.Option(help="The new .csv file.")] = Path("predictions.csv"),
    patients: Annotated[
        Path | None, typer.Option(help="The table of slides and patients, for bags of patients.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Goes on without slides that lack something.")
    ] = False,
) -> None:
    """Predicts new slides by all models of a run: the mean of their probabilities, or the risk."""
    from nystromer.recipes.slides.predict import predict_slides

    count = predict_slides(
        run, features, output, patients=patients, skip_missing=skip_missing, track=watched
    )
    typer.echo(f"{count:,} bags.\nWritten: {output}")


def _training() -> Any:
    try:
        from nystromer.recipes.slides import training
    except ImportError as error:
        raise ImportError("Training needs more: pip install nystromer[mil,train].") from error
    return training


def _table(metrics: dict[str, Any]) -> Table:
    from nystromer.recipes.slides.scores import NAMES

    table = Table(box=SIMPLE)
    for name in ("model", "score", "mean", "± folds", "± seeds"):
        table.add_column(name, justify="left" if name in ("model", "score") else "right")
    last = None
    for row in metrics["table"]:
        numbers = (row["mean"], row["over_folds"], row["over_seeds"])
        shown = ["–" if x is None else f"{x:.3f}" for x in numbers]
        name = row["model"] if row["model"] != last else ""
        table.add_row(name, NAMES[row["score"]], *shown)
        last = row["model"]
    return table
