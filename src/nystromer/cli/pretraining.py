"""nystromer pretrain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def pretrain(
    output: Annotated[Path, typer.Option(help="New folder for model, tokenizer and curves.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Documents: .jsonl, .csv, .tsv, .parquet or text; .gz, .xz, .bz2, .zst."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of files, a dataset of the Hub, streamed.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Of the dataset.")] = None,
    split: Annotated[str, typer.Option(help="Of the dataset.")] = "train",
    text_column: Annotated[str, typer.Option(help="That holds a document.")] = "text",
    held_out: Annotated[float, typer.Option(help="Share of documents to evaluate on.")] = 0.02,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="train (on the corpus), bytes, dna, a name or a folder; --from's own if not given."
        ),
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Of a tokenizer that is trained.")] = 8_000,
    preset: Annotated[str, typer.Option(help="tiny, bert-small or bert-base.")] = "tiny",
    checkpoint: Annotated[
        str | None, typer.Option("--from", help="A model to go on from, instead of a preset.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="nystrom, or exact for the twin.")] = None,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens N; a checkpoint with fewer positions is lengthened.")
    ] = 512,
    num_landmarks: Annotated[
        int | None, typer.Option(help="Landmarks M; 64, or the checkpoint's.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Updates; 2,000 for tiny, 100,000 for bert-small, 500,000 for bert-base."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows an update, of all processes.")] = 256,
    device_batch: Annotated[
        int | None, typer.Option(help="Rows at a time in a process; what holds 8,192 tokens.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="The most, after the warm-up.")] = 1e-4,
    warmup_steps: Annotated[
        int | None, typer.Option(help="A tenth of the steps, at most 10,000.")
    ] = None,
    evaluations: Annotated[int, typer.Option(help="How often to evaluate and save.")] = 20,
    seed: Annotated[int, typer.Option(help="Of weights, order, masks and swaps.")] = 0,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Go on after lines that cannot be read.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
) -> None:
    """Pretrains a Nyströmformer on documents: masked words and sentence order.

    The defaults are the paper's: AdamW, 1e-4 after a warm-up, weight decay 0.01, batches of 256.

    Run by torchrun or accelerate launch, the same command uses several processes.
    """
    from nystromer.recipes.pretrain import pretrain
    from nystromer.recipes.pretrain.corpus import Corpus
    from nystromer.recipes.pretrain.settings import Settings

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
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        evaluations=evaluations,
        seed=seed,
    )
    metrics = pretrain(settings, output, resume=resume)
    if os.environ.get("RANK", "0") != "0":
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
