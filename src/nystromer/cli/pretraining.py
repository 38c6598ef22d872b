"""The command that pretrains: `nystromer pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def pretrain(
    output: Annotated[Path, typer.Option(help="The new folder for model, tokenizer and curves.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The files of documents: .jsonl, .csv, .tsv, .parquet, text; .gz, .xz, .bz2, .zst."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The dataset of the Hub to stream, instead of files.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="The configuration of the dataset.")] = None,
    split: Annotated[str, typer.Option(help="The split of the dataset.")] = "train",
    text_column: Annotated[str, typer.Option(help="The column that holds a document.")] = "text",
    held_out: Annotated[float, typer.Option(help="The share of documents to evaluate on.")] = 0.02,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The tokenizer: train (a new one), bytes, dna, a name or folder; or --from's."
        ),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option(help="The tokens of a tokenizer that is trained.")
    ] = 8_000,
    preset: Annotated[
        str, typer.Option(help="The size of a new model: tiny, bert-small or bert-base.")
    ] = "tiny",
    checkpoint: Annotated[
        str | None, typer.Option("--from", help="The model to go on from, instead of a preset.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="The attention: nystrom, or exact for the twin.")
    ] = None,
    sequence_length: Annotated[
        int,
        typer.Option(
            help="The tokens N of a row; a checkpoint with fewer positions is lengthened."
        ),
    ] = 512,
    num_landmarks: Annotated[
        int | None, typer.Option(help="The landmarks M; 64, or the checkpoint's.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="The updates; 2,000 for tiny, 100,000 for bert-small, 500,000 for bert-base."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="The rows of an update, of all processes.")] = 256,
    device_batch: Annotated[
        int | None,
        typer.Option(help="The rows at a time in a process; those of 8,192 tokens if none."),
    ] = None,
    sequence_parallel: Annotated[
        int, typer.Option(help="The processes that read each row together.")
    ] = 1,
    learning_rate: Annotated[
        float, typer.Option(help="The highest learning rate, after the warm-up.")
    ] = 1e-4,
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="The steps of the warm-up; a tenth of all, at most 10,000, if none."),
    ] = None,
    evaluations: Annotated[int, typer.Option(help="How often it evaluates and saves.")] = 20,
    seed: Annotated[int, typer.Option(help="The seed of weights, order, masks and swaps.")] = 0,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Counts lines that cannot be read and goes on.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Goes on with the run in --output.")
    ] = False,
) -> None:
    """Pretrains a Nyströmformer on documents: masked words and sentence order.

    The defaults are the paper's: AdamW, 1e-4 after a warm-up, weight decay 0.01, batches of 256.

    Run by torchrun or accelerate launch, the same command uses several processes.
    """
    from nystromer.recipes.pretrain import pretrain
    from nystromer.recipes.pretrain.corpus import Corpus
    from nystromer.recipes.pretrain.settings import Settings
    from nystromer.recipes.runs.claim import is_first

    corpus = Corpus(tuple(files or ()), dataset, config, split, text_column, skip_bad_lines)
    settings = Settings(
        corpus=corpus,
        held_out=held_out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        preset=preset,
        checkpoint=checkpoint,
        attention=attention,
        sequence_length=sequence_length,
        num_landmarks=num_landmarks,
        steps=steps,
        batch_size=batch_size,
        device_batch=device_batch,
        sequence_parallel=sequence_parallel,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        evaluations=evaluations,
        seed=seed,
    )
    metrics = pretrain(settings, output, resume=resume)
    if not is_first():
        return  # one of several processes speaks
    Console().print(_table(metrics))
    if metrics["bad_lines"]:
        typer.echo(f"{metrics['bad_lines']} lines could not be read.")
    typer.echo(f"Written: {output}")


def _table(metrics: dict[str, float]) -> Table:
    caption = f"on {metrics['held_out_rows']:,} held-out rows after {metrics['steps']:,} steps"
    table = Table("", "loss", "accuracy", caption=caption, box=SIMPLE)
    for name, title in (("word", "masked words"), ("order", "sentence order")):
        loss, accuracy = metrics[f"eval_{name}_loss"], metrics[f"eval_{name}_accuracy"]
        table.add_row(title, f"{loss:.3f}", f"{accuracy:.3f}")
    return table
