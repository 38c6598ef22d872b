"""The settings of a pretraining, and what Trainer is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from nystromer.recipes.inputs.options import check_counts, check_rate
from nystromer.recipes.inputs.presets import check_attention, check_preset
from nystromer.recipes.pretrain.corpus import Corpus
from nystromer.recipes.runs.shared import check_shared
from nystromer.recipes.runs.trainer import training_arguments

STEPS = {"tiny": 2_000, "bert-small": 100_000, "bert-base": 500_000}  # the last two: the paper's
SHORTEST = 16  # tokens that hold two segments
TOKENS = 8_192  # of a device's batch, unless it is given


@dataclass(frozen=True)
class Settings:
    """Holds the settings of a pretraining; the defaults are the paper's.

    Args:
        corpus: What to read.
        held_out: Share of the documents that is kept for evaluation.
        held_out_rows: At most so many rows of them are evaluated.
        tokenizer: "train" for one of the corpus's own words, bytes, dna, a name or a folder; None
            is that of the checkpoint, or "train".
        vocab_size: Of a tokenizer that is trained.
        preset: Size of a new model.
        checkpoint: Instead of a preset, a folder or Hub name to go on from.
        attention: nystrom or exact; None is that of the checkpoint, or nystrom.
        sequence_length: N. A checkpoint with fewer positions is lengthened.
        num_landmarks: M; None is that of the checkpoint, or 64.
        steps: Updates; None is 2,000 (tiny), 100,000 (bert-small) or 500,000.
        batch_size: Rows an update, of all processes.
        device_batch: Rows at a time in one process; None is what holds 8,192 tokens.
        sequence_parallel: S, processes that read each row together, one row at a time.
        learning_rate: The most, after the warm-up; it falls to 0 in a line.
        warmup_steps: None is a tenth of the steps, at most 10,000.
        evaluations: Evaluations and checkpoints, equally spaced.
        seed: Of weights, order and draws.
    """

    corpus: Corpus
    held_out: float = 0.02
    held_out_rows: int = 500
    tokenizer: str | None = None
    vocab_size: int = 8_000
    preset: str = "tiny"
    checkpoint: str | None = None
    attention: str | None = None
    sequence_length: int = 512
    num_landmarks: int | None = None
    steps: int | None = None
    batch_size: int = 256
    device_batch: int | None = None
    sequence_parallel: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int | None = None
    evaluations: int = 20
    seed: int = 0


def arguments_of(settings: Settings, output: Path) -> TrainingArguments:
    """Returns what Trainer is told.

    Raises:
        ValueError: If a name is unknown, a number is not usable, or the batch cannot be divided.
    """
    check_preset(settings.preset)
    check_attention(settings.attention or "nystrom")
    check_counts(settings, "steps", "warmup_steps", "batch_size", "device_batch", "num_landmarks")
    check_counts(settings, "evaluations", "held_out_rows", "vocab_size")
    check_rate(settings.learning_rate)
    if settings.sequence_length < SHORTEST:
        raise ValueError(
            f"`sequence_length` must be at least {SHORTEST}, got {settings.sequence_length}."
        )
    if not 0 < settings.held_out < 1:
        raise ValueError(f"`held_out` must be between 0 and 1, got {settings.held_out}.")
    steps = settings.steps or STEPS[settings.preset]
    every = max(1, steps // settings.evaluations)
    arguments = training_arguments(
        output,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        weight_decay=0.01,
        warmup_steps=settings.warmup_steps or min(10_000, steps // 10),
        eval_steps=every,
        save_steps=every,
        logging_steps=every,
        dataloader_drop_last=True,
        dataloader_num_workers=2 if torch.cuda.is_available() else 0,
        accelerator_config={"dispatch_batches": False},
        seed=settings.seed,
    )
    check_shared(settings.sequence_parallel, settings.device_batch)
    if settings.sequence_parallel > 1 and settings.corpus.dataset:
        raise ValueError(
            "`--sequence-parallel` reads files, got the streamed --dataset "
            f"{settings.corpus.dataset}; write its documents to a file first."
        )
    processes = arguments.world_size // settings.sequence_parallel
    each = device_batch(settings, processes)
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = each
    arguments.gradient_accumulation_steps = settings.batch_size // (each * processes)
    return arguments


def device_batch(settings: Settings, processes: int) -> int:
    """Returns the rows at a time in one of the processes.

    Raises:
        ValueError: If it times the processes does not divide the batch.
    """
    share, left = divmod(settings.batch_size, processes)
    each = settings.device_batch if settings.sequence_parallel == 1 else 1
    if each is None:
        most = max(1, TOKENS // settings.sequence_length)
        each = max(x for x in range(1, max(1, min(share, most)) + 1) if share % x == 0)
    if left or share % each:
        raise ValueError(
            f"`--batch-size` must be a multiple of the device's batch times the processes, "
            f"{each} × {processes}, got {settings.batch_size}; write "
            f"{-(-settings.batch_size // (each * processes)) * each * processes}."
        )
    return each
