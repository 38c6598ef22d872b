"""transformers' Trainer as every recipe uses it: nothing half written, the same order again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from nystromer.recipes.shared.curves import write_curves

PARTIAL = "checkpoint.partial"  # a name that transformers does not take for a checkpoint


def training_arguments(folder: Path, **options: Any) -> TrainingArguments:
    """What is the same in every recipe: devices, bfloat16 where it is fast, TensorBoard if there.

    Evaluations and checkpoints go by steps (an evaluation after the checkpoint of the same step
    would not be repeated after a resume), the logs of the loss with them.
    """
    common: dict[str, Any] = {
        "lr_scheduler_type": "linear",
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_strategy": "steps",
        "report_to": ["tensorboard"] if find_spec("tensorboard") else [],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": bfloat16_is_fast(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }
    return TrainingArguments(str(folder), **{**common, **options})


def batch_sizes(batch_size: int, device_batch: int | None = None) -> dict[str, int]:
    """Of TrainingArguments, for `batch_size` rows an update over all processes together.

    Args:
        device_batch: Rows that a process takes at a time; None is all of its share.

    Raises:
        ValueError: If the rows cannot be shared out.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = device_batch or max(1, batch_size // processes)
    if batch_size % (rows * processes):
        raise ValueError(
            f"`batch_size` must be a multiple of {processes} processes × {rows} rows, got "
            f"{batch_size}; write {rows * processes}, or another device_batch."
        )
    return {
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": batch_size // (rows * processes),
    }


def updates(count: int, sizes: Mapping[str, int]) -> int:
    """Of an epoch over `count` rows, as Trainer counts them."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batches = -(-count // (sizes["per_device_train_batch_size"] * processes))
    return -(-batches // sizes["gradient_accumulation_steps"])


def bfloat16_is_fast() -> bool:
    """Autocast to bfloat16 makes a step 2.4 times faster on a CPU that multiplies it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class RunTrainer(Trainer):
    """transformers' Trainer with checkpoints that exist whole or not at all, an order of the rows
    that a resumed run repeats, a quiet progress bar and curves drawn at every evaluation.

    Args:
        lengths: Of the training rows; then batches hold rows of like length.
        token_dropout: Share of the tokens of a training text that [MASK] stands in for, drawn anew
            every time.
    """

    def __init__(
        self,
        *args: Any,
        lengths: Sequence[int] | None = None,
        token_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.token_dropout = token_dropout
        logging.disable_progress_bar()  # of saving, which would break into the training's
        self.lengths = lengths
        self.remove_callback(ProgressCallback)
        self.add_callback(Progress())
        self.add_callback(Curves())
        if isinstance(self.train_dataset, EpochDataset):
            self.add_callback(DrawAnew(self.train_dataset))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "__len__"):
            return None
        return EpochSampler(self, len(dataset), self.lengths)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.token_dropout:
            inputs["input_ids"] = self.with_dropout(inputs["input_ids"])
        return super().training_step(model, inputs, *args, **kwargs)

    def with_dropout(self, ids: Tensor) -> Tensor:
        """[B, N] -> [B, N]; special tokens stay."""
        tokenizer: Any = self.processing_class
        special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
        dropped = (torch.rand(ids.shape, device=ids.device) < self.token_dropout) & ~special
        return ids.masked_fill(dropped, tokenizer.mask_token_id)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        partial = folder / PARTIAL
        self.args.output_dir = str(partial)
        try:
            with said_when_unwritable(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(folder)
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.state.best_model_checkpoint == str(partial / name):
            self.state.best_model_checkpoint = str(folder / name)
        if self.args.should_save:
            with said_when_unwritable(folder):
                self.state.save_to_json(str(partial / name / "trainer_state.json"))
                synchronize(partial / name)
                (partial / name).rename(folder / name)
                partial.rmdir()
            rotate_checkpoints(
                str(folder), self.args.save_total_limit, self.state.best_model_checkpoint
            )
        self.accelerator.wait_for_everyone()


class EpochDataset(Dataset[Any]):
    """One whose rows are others in every epoch; `epoch` says which it is."""

    epoch: int


class DrawAnew(TrainerCallback):
    """Tells the training rows which epoch it is, before workers are started."""

    def __init__(self, rows: EpochDataset) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rows.epoch = int(state.epoch)


class EpochSampler(Sampler[int]):
    """Every row once, in an order that depends on the seed and the epoch alone.

    The epoch is the trainer's own: accelerate's `set_epoch` does not reach the sampler of a run
    that several processes resume in the middle of an epoch.
    """

    def __init__(self, trainer: Trainer, count: int, lengths: Sequence[int] | None) -> None:
        self.trainer, self.count, self.lengths = trainer, count, lengths

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        args = self.trainer.args
        draw = random.Random(f"{args.seed}, {int(self.trainer.state.epoch or 0)}")
        order = draw.sample(range(self.count), self.count)
        if self.lengths is None:
            return iter(order)
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return iter(grouped(order, self.lengths, batch, draw))


def grouped(
    order: Sequence[int], lengths: Sequence[int], batch: int, draw: random.Random, pool: int = 16
) -> list[int]:
    """The same rows, with rows of like length together: `pool` batches at a time are sorted and
    cut into batches, then all batches are shuffled, but for the last, which may be smaller."""
    batches: list[list[int]] = []
    for start in range(0, len(order), pool * batch):
        rows = sorted(order[start : start + pool * batch], key=lambda i: lengths[i])
        batches += [rows[i : i + batch] for i in range(0, len(rows), batch)]
    last = [batches.pop()] if batches and len(batches[-1]) < batch else []
    draw.shuffle(batches)
    return [row for rows in batches + last for row in rows]


class Progress(ProgressCallback):
    """A bar with the time left, without a dictionary printed at every log."""

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class Curves(TrainerCallback):
    """Draws the run so far, in its folder."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with said_when_unwritable(Path(args.output_dir)):
                write_curves(state.log_history, Path(args.output_dir))


@contextmanager
def said_when_unwritable(folder: Path) -> Iterator[None]:
    """
    Raises:
        ValueError: If the disk is full, or takes no files for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        free = shutil.disk_usage(folder).free / 2**20
        raise ValueError(
            f"{folder} cannot be written to: {reason} ({free:,.0f} MiB are free); make room, then "
            "give the same command with --resume."
        ) from error


def synchronize(folder: Path) -> None:
    """Has the folder's files on the disk before their folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
