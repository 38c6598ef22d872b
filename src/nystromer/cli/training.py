"""`nystromer train` and `nystromer predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def train(
    task: Annotated[
        str | None, typer.Argument(help="sst2, mrpc, qnli, qqp, mnli, imdb; none for own files.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of TASK's files; without it the Hub is asked.")
    ] = None,
    train_file: Annotated[
        Path | None, typer.Option(help=".jsonl, .csv, .tsv, .parquet; also .gz, .xz, .bz2, .zst.")
    ] = None,
    eval_file: Annotated[
        Path | None, typer.Option(help="To watch; a tenth of --train-file is held out if none.")
    ] = None,
    test_file: Annotated[
        Path | None, typer.Option(help="Looked at once, after the training.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Of the text.")] = "text",
    text_pair_column: Annotated[
        str | None, typer.Option(help="Of the second text of a pair.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="Of the label.")] = "label",
    preset: Annotated[
        str | None, typer.Option(help="A new model: tiny, bert-small, bert-base; default: tiny.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="One to fine-tune instead: folder or Hub name.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="nystrom, or exact for its twin; default: nystrom.")
    ] = None,
    num_landmarks: Annotated[int | None, typer.Option(help="Landmarks M; default: 64.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="bytes, dna, Hub name or folder; default: the model's, else bytes."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a text; default: 2048, or all that --model reads."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training rows.")] = 4,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows an update; default: 32; 8 for tiny.")
    ] = None,
    device_batch: Annotated[
        int | None, typer.Option(help="Rows at a time, if an update's do not fit.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 3e-5, higher for a new model.")
    ] = None,
    token_dropout: Annotated[
        float | None,
        typer.Option(help="Share of a training text's tokens to mask; default: 0.15 for tiny."),
    ] = None,
    later_starts: Annotated[
        float | None,
        typer.Option(help="Part in which a training text may begin; default: 1/3 for tiny, bytes."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, dropout and order.")] = 0,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Count lines that cannot be read, go on.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --output.")
    ] = False,
    output: Annotated[Path, typer.Option(help="New folder for model and metrics.")] = Path("run"),
) -> None:
    """Trains a classifier of texts, or of pairs of texts, however long.

    nystromer train --train-file mails.jsonl --tokenizer bytes --max-length 4096

    nystromer train sst2 --data-dir data --model MODEL

    An interrupted run goes on to the same result when the command is given again with --resume.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "output")}
    from nystromer.recipes.classify.settings import Settings
    from nystromer.recipes.classify.train import train_classifier

    metrics = train_classifier(Settings(**options), output, resume=resume)
    Console().print(_table(metrics))
    for name, what in (
        ("cut", "training texts fill --max-length and may be cut"),
        ("bad_lines", "lines were skipped"),
    ):
        if metrics[name]:
            typer.echo(f"{metrics[name]:,} {what}.")
    typer.echo(f"Written: {output}")


def predict(
    model: Annotated[str, typer.Argument(help="Folder of a run, or a classifier's Hub name.")],
    file: Annotated[Path, typer.Argument(help="Rows with the columns that it was trained on.")],
    output: Annotated[Path, typer.Option(help="A new .jsonl or .csv file.")] = Path(
        "predictions.jsonl"
    ),
    text_column: Annotated[str | None, typer.Option(help="If the file calls it otherwise.")] = None,
    text_pair_column: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at a time.")] = 32,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Count lines that cannot be read, go on.")
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
