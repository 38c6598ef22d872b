"""Pretrains on masked words and sentence order, as the paper did (`nystromer pretrain`).

documents -> tokenizer -> rows of sentences -> pairs, drawn anew in every epoch -> model
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from nystromer.hf import NystromformerForPreTraining, resize_positions
from nystromer.recipes.files.fingerprints import of_model
from nystromer.recipes.inputs.models import check_vocabulary, load_config, load_model
from nystromer.recipes.inputs.presets import preset
from nystromer.recipes.pretrain.pairs import Draw, Pad
from nystromer.recipes.pretrain.prepare import (
    COUNTS,
    HELD_OUT,
    TRAIN,
    corpus_tokenizer,
    lengths_of,
    prepared,
    read_part,
    streamed,
)
from nystromer.recipes.pretrain.settings import Settings, arguments_of
from nystromer.recipes.pretrain.trainer import Examples, Pretraining, scores
from nystromer.recipes.runs.curves import without_times
from nystromer.recipes.runs.run import Run, open_run
from nystromer.recipes.runs.shared import without_processes


def pretrain(settings: Settings, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains a model on masked words and sentence order, and writes it to `output`.

    Returns:
        Loss and accuracy of both on the held-out documents, and what was read.

    Raises:
        ValueError: If an option or a file is not usable, or as `open_run`.
        FloatingPointError: If a loss or a weight is not finite.
    """
    arguments = arguments_of(settings, output)
    with open_run(output, without_processes(settings), resume) as run:
        return pretrain_in(run, settings, arguments)


def pretrain_in(run: Run, settings: Settings, arguments: TrainingArguments) -> dict[str, Any]:
    """Pretrains in the folder of a run, as `pretrain`."""
    inputs = dict(settings.corpus.fingerprints)
    if settings.checkpoint is not None:
        inputs[f"the model {settings.checkpoint}"] = of_model(
            settings.checkpoint, load_config(settings.checkpoint)
        )
    if settings.tokenizer is not None:
        inputs[f"the tokenizer {settings.tokenizer}"] = of_model(settings.tokenizer)
    if (done := run.begin(inputs)) is not None:
        return done
    with arguments.main_process_first(local=True):  # the others find its work in the cache
        name = settings.tokenizer or settings.checkpoint or "train"
        tokenizer = corpus_tokenizer(settings.corpus, name, settings.vocab_size)
        set_seed(settings.seed)
        model = model_of(settings, tokenizer)
        rows = prepared(
            settings.corpus,
            tokenizer,
            settings.sequence_length,
            share=settings.held_out,
            at_most=settings.held_out_rows,
        )
    draw = Draw(tokenizer, settings.seed)
    train = examples_of(settings, tokenizer, draw, rows)
    trainer = Pretraining(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=Examples(read_part(rows, HELD_OUT), draw),
        data_collator=Pad(tokenizer),
        processing_class=tokenizer,
        compute_metrics=scores,
        lengths=lengths_of(train.rows) if isinstance(train, Examples) else None,
        sequence_parallel=settings.sequence_parallel,
    )
    run.train(trainer)
    counts = json.loads((rows / COUNTS).read_text(encoding="utf-8"))
    found = without_times(trainer.evaluate())
    metrics = {**found, **counts, "steps": trainer.state.global_step}
    run.finish(trainer, metrics)
    return metrics


def model_of(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> NystromformerForPreTraining:
    """Makes a new model, or loads that of the checkpoint with as many positions as are needed.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or as `preset`.
    """
    if settings.checkpoint is None:
        config = preset(
            settings.preset,
            tokenizer,
            max_length=settings.sequence_length,
            num_landmarks=settings.num_landmarks or 64,
            attention=settings.attention or "nystrom",
        )
        return NystromformerForPreTraining(config)
    fields: dict[str, Any] = {}
    if settings.attention is not None:
        fields["exact_attention"] = settings.attention == "exact"
    if settings.num_landmarks is not None:
        fields["num_landmarks"] = settings.num_landmarks
    name, config = settings.checkpoint, load_config(settings.checkpoint, **fields)
    if config.model_type != "nystromformer":
        raise ValueError(
            f"`--from` goes on with a Nyströmformer, got {name}, a {config.model_type}."
        )
    model = load_model(NystromformerForPreTraining, name, new_head=True, config=config).train()
    check_vocabulary(model, tokenizer, name)
    if settings.sequence_length > model.config.max_position_embeddings:
        resize_positions(model, settings.sequence_length)
    return model


def examples_of(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, draw: Draw, rows: Path
) -> Dataset | IterableDataset:
    """Returns what is trained on: rows on disk, or the stream of a dataset."""
    if not settings.corpus.dataset:
        return Examples(read_part(rows, TRAIN), draw)
    length, share = settings.sequence_length, settings.held_out
    return streamed(settings.corpus, tokenizer, length, share=share, draw=draw)
