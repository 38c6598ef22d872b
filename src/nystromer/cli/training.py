"""The commands for classifiers: `nystromer train` and `nystromer predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def train(
    task: Annotated[
        str | None,
        typer.Argument(help="The task: sst2, mrpc, qnli, qqp, mnli, imdb; none for own files."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder of TASK's files; without it the Hub is asked.")
    ] = None,
    train_file: Annotated[
        Path | None,
        typer.Option(
            help="The file to learn from: .jsonl, .csv, .tsv, .parquet; also .gz, .xz, .bz2, .zst."
        ),
    ] = None,
    eval_file: Annotated[
        Path | None,
        typer.Option(help="The file to watch; if none, a tenth of --train-file is held out."),
    ] = None,
    test_file: Annotated[
        Path | None, typer.Option(help="The file that is looked at once, after the training.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    text_pair_column: Annotated[
        str | None, typer.Option(help="The column that holds the second text of a pair.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="The column that holds the label.")] = "label",
    preset: Annotated[
        str | None,
        typer.Option(help="The size of a new model: tiny, bert-small, bert-base; tiny if none."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The folder or Hub name of a model to fine-tune instead.")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="The attention: nystrom, or exact for its twin; nystrom if none."),
    ] = None,
    num_landmarks: Annotated[int | None, typer.Option(help="The landmarks M; 64 if none.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The tokenizer: bytes, dna, a name or folder; else the model's, or bytes."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="The most tokens of a text; 2048, or all that --model reads, if none."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="The passes over the training rows.")] = 4,
    batch_size: Annotated[
        int | None, typer.Option(help="The rows of an update; 32, and 8 for tiny, if none.")
    ] = None,
    device_batch: Annotated[
        int | None, typer.Option(help="The rows at a time, if those of an update do not fit.")
    ] = None,
    sequence_parallel: Annotated[
        int, typer.Option(help="The processes that read each row together.")
    ] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The highest learning rate; 3e-5, more for a new model, if none."),
    ] = None,
    token_dropout: Annotated[
        float | None,
        typer.Option(help="The share of a training text's tokens that is masked; 0.15 for tiny."),
    ] = None,
    later_starts: Annotated[
        float | None,
        typer.Option(help="The part in which a training text may begin; 1/3 for tiny and bytes."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of weights, dropout and order.")] = 0,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Counts lines that cannot be read and goes on.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Goes on with the interrupted run in --output.")
    ] = False,
    output: Annotated[Path, typer.Option(help="The new folder for model and metrics.")] = Path(
        "run"
    ),
) -> None:
    """Trains a classifier of texts, or of pairs of texts, however long.

    nystromer train --train-file mails.jsonl --tokenizer bytes --max-length 4096

    nystromer train sst2 --data-dir data --model MODEL

    An interrupted run goes on to the same result when the command is given again with --resume.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "output")}
    from nystromer.recipes.classify.settings import Settings
    from nystromer.recipes.classify.train import train_classifier
    from nystromer.recipes.runs.claim import is_first

    metrics = train_classifier(Settings(**options), output, resume=resume)
    if not is_first():
        return  # one of several processes speaks
    Console().print(_table(metrics))
    for name, what in (
        ("cut", "training texts fill --max-length and may be cut"),
        ("bad_lines", "lines were skipped"),
    ):
        if metrics[name]:
            typer.echo(f"{metrics[name]:,} {what}.")
    typer.echo(f"Written: {output}")


def predict(
    model: Annotated[str, typer.Argument(help="The folder of a run, or a classifier's Hub name.")],
    file: Annotated[
        Path, typer.Argument(help="The file of rows, with the columns that it was trained on.")
    ],
    output: Annotated[Path, typer.Option(help="The new .jsonl or .csv file.")] = Path(
        "predictions.jsonl"
    ),
    text_column: Annotated[
        str | None, typer.Option(help="The column of the text, if the file calls it otherwise.")
    ] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(help="The column of the second text, likewise.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="The rows at a time.")] = 32,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Counts lines that cannot be read and goes on.")
    ] = False,
) -> None:
    """Labels new text: every row of FILE with "predicted" and its "probability"."""
    from nystromer.recipes.classify.predict import predict as label

    skipped = label(
        model,
        file,
        output,
        columns=(text_column, text_pair_column),
        batch_size=batch_size,
        skip_bad_lines=skip_bad_lines,
    )
    if skipped:
        typer.echo(f"{skipped:,} lines skipped.")
    typer.echo(f"Written: {output}")


def _table(metrics: dict[str, Any]) -> Table:
    splits = {name: values for name, values in metrics.items() if "accuracy" in str(values)}
    names = list(dict.fromkeys(name for values in splits.values() for name in values))
    table = Table(box=SIMPLE)
    for name in ("", "rows", *names):
        table.add_column(name.replace("_", " "), justify="right" if name else "left")
    for split, values in splits.items():
        shown = (f"{values[name]:.4f}" for name in names)
        table.add_row(split.replace("_", " "), f"{metrics['rows'][split]:,}", *shown)
    return table
