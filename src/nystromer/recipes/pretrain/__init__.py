"""nystromer pretrain: masked words and sentence order, as Nyströmformer was pretrained.

documents -> tokenizer -> rows of sentences -> pairs, drawn anew in every epoch -> model
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, set_seed

from nystromer.hf import NystromformerForPreTraining, resize_positions
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
from nystromer.recipes.shared.presets import preset
from nystromer.recipes.shared.run import Run


def pretrain(settings: Settings, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains a model on masked words and sentence order, and writes it to `output`.

    Returns:
        Loss and accuracy of both on the held-out documents, and what was read.

    Raises:
        ValueError: If an option or a file is not usable, or as `Run`.
    """
    run = Run(output, asdict(settings), resume)
    if (done := run.finished()) is not None:
        return done
    arguments = arguments_of(settings, output)
    with arguments.main_process_first(local=True):  # the others find its work in the cache
        name = settings.tokenizer or settings.checkpoint or "train"
        tokenizer = corpus_tokenizer(settings.corpus, name, settings.vocab_size)
        rows = prepared(
            settings.corpus,
            tokenizer,
            settings.sequence_length,
            share=settings.held_out,
            at_most=settings.held_out_rows,
        )
    set_seed(settings.seed)
    model = model_of(settings, tokenizer)
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
    )
    run.train(trainer)
    counts = json.loads((rows / COUNTS).read_text(encoding="utf-8"))
    metrics = {**trainer.evaluate(), **counts, "steps": trainer.state.global_step}
    run.finish(trainer, metrics)
    return metrics


def model_of(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> NystromformerForPreTraining:
    """A new model, or that of the checkpoint with as many positions as the sequences need.

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
    try:
        model = NystromformerForPreTraining.from_pretrained(settings.checkpoint, **fields)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0].rstrip(". ")
        raise ValueError(f"No model can be loaded from {settings.checkpoint}: {first}.") from error
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"`--tokenizer` must have at most the {model.config.vocab_size} tokens of "
            f"{settings.checkpoint}, got {len(tokenizer)}; leave it out to take the checkpoint's."
        )
    if settings.sequence_length > model.config.max_position_embeddings:
        resize_positions(model, settings.sequence_length)
    return model


def examples_of(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, draw: Draw, rows: Path
) -> Dataset | IterableDataset:
    """What is trained on: rows on disk, or the stream of a dataset."""
    if not settings.corpus.dataset:
        return Examples(read_part(rows, TRAIN), draw)
    length, share = settings.sequence_length, settings.held_out
    return streamed(settings.corpus, tokenizer, length, share=share, draw=draw)
