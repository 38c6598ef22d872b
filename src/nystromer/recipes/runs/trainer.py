"""transformers' Trainer as every recipe uses it: nothing half written, no NaN, the same order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from nystromer.recipes.files.errors import TORCH_WRITING, said_when_unwritable
from nystromer.recipes.inputs.models import not_finite
from nystromer.recipes.runs.checkpoints import PARTIAL, complete, damage
from nystromer.recipes.runs.curves import write_curves
from nystromer.recipes.runs.order import DrawAnew, EpochDataset, EpochSampler
from nystromer.recipes.runs.shared import Repeated, check_shared, share_sequences, world_size


def training_arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Returns what is the same in every recipe: devices, bfloat16 where it is fast, TensorBoard if
    it is installed, and two checkpoints, so that there is one before the last.

    Evaluations and checkpoints go by steps (an evaluation after the checkpoint of the same step
    would not be repeated after a resume), the logs of the loss with them.
    """
    common: dict[str, Any] = {
        "lr_scheduler_type": "linear",
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # they stop the run
        "restore_callback_states_from_checkpoint": True,  # the patience of an early stop
        "report_to": ["tensorboard"] if find_spec("tensorboard") else [],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": bfloat16_is_fast(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }
    return TrainingArguments(str(folder), **{**common, **options})


def batch_sizes(
    batch_size: int, device_batch: int | None = None, sequence_parallel: int = 1
) -> dict[str, int]:
    """Returns the options of TrainingArguments for `batch_size` rows an update over all processes.

    Args:
        batch_size: Rows an update.
        device_batch: Rows that a process takes at a time; None is all of its share.
        sequence_parallel: Processes that read each row together, one row at a time.

    Raises:
        ValueError: If the rows cannot be shared out.
    """
    check_shared(sequence_parallel, device_batch)
    processes = world_size() // sequence_parallel
    rows = device_batch or max(1, batch_size // processes)
    if sequence_parallel > 1:
        rows = 1
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


def updates(count: int, sizes: Mapping[str, int], sequence_parallel: int = 1) -> int:
    """Returns the number of updates in one epoch of `count` rows, as Trainer counts them."""
    processes = world_size() // sequence_parallel
    batches = -(-count // (sizes["per_device_train_batch_size"] * processes))
    return -(-batches // sizes["gradient_accumulation_steps"])


def bfloat16_is_fast() -> bool:
    """Says whether the device multiplies bfloat16: there a step is 2.4 times faster on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class RunTrainer(Trainer):
    """Trains with checkpoints that exist whole or not at all, an order of the rows that a resumed
    run repeats, a quiet progress bar and curves drawn at every evaluation. A loss or
    a weight that is not finite stops it, before it gets into a checkpoint.

    Args:
        lengths: Of the training rows; then batches hold rows of like length.
        token_dropout: Share of the tokens of a training text that [MASK] stands in for, drawn anew
            every time.
        sequence_parallel: Processes that read each row together.
    """

    def __init__(
        self,
        *args: Any,
        lengths: Sequence[int] | None = None,
        token_dropout: float = 0.0,
        sequence_parallel: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.token_dropout, self.sequence_parallel = token_dropout, sequence_parallel
        share_sequences(self.model, sequence_parallel)  # type: ignore[arg-type]
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
        return EpochSampler(self, len(dataset), self.lengths, self.sequence_parallel)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        if self.sequence_parallel == 1:
            return super().get_eval_dataloader(eval_dataset)
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = cast(Any, self.eval_dataset)[rows]
        return super().get_eval_dataloader(Repeated(rows, self.sequence_parallel))

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.token_dropout:
            inputs["input_ids"] = self.with_dropout(inputs["input_ids"])
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.check_finite("training", float(loss))
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        for name, value in metrics.items():
            if name.endswith("loss"):
                self.check_finite("held-out", value)
        return metrics

    def check_finite(self, what: str, loss: float = 0.0) -> None:
        """Stops a run that cannot come to anything.

        Raises:
            FloatingPointError: If the loss or a weight is NaN or infinite.
        """
        wrong = "" if math.isfinite(loss) else f"the {what} loss is {loss}"
        if not wrong and what == "saving":
            wrong = not_finite(self.model)  # type: ignore[arg-type]
        if wrong:
            raise FloatingPointError(
                f"Stopped at step {self.state.global_step}: {wrong}. The last checkpoint is from "
                "before; begin anew with a lower --learning-rate or other data."
            )

    def with_dropout(self, ids: Tensor) -> Tensor:
        """Returns token ids [B, N] with a share of them masked; special tokens stay."""
        tokenizer: Any = self.processing_class
        special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
        draw = torch.rand(ids.shape, device=ids.device)
        shared: Any = getattr(self.model, "shared_sequence", None)
        if shared is not None:
            draw = shared.of_the_first(draw)
        return ids.masked_fill((draw < self.token_dropout) & ~special, tokenizer.mask_token_id)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_finite("saving")
        folder, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        partial = folder / PARTIAL
        self.args.output_dir = str(partial)
        try:
            with said_when_unwritable(folder, errors=TORCH_WRITING):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(folder)
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.state.best_model_checkpoint == str(partial / name):
            self.state.best_model_checkpoint = str(folder / name)
        if self.args.should_save:
            with said_when_unwritable(folder):
                self.state.save_to_json(str(partial / name / "trainer_state.json"))
                complete(folder, name)
            rotate_checkpoints(
                str(folder), self.args.save_total_limit, self.state.best_model_checkpoint
            )
        self.accelerator.wait_for_everyone()

    def _init_training_state(self, max_steps: int, *args: Any) -> Any:
        found = super()._init_training_state(max_steps, *args)
        stopped = self.control.should_training_stop or self.state.global_step >= max_steps
        self.at_its_end = self.state.global_step > 0 and stopped
        if best := self.state.best_global_step:  # its folder may have been moved
            path = Path(str(self.args.output_dir)) / f"checkpoint-{best}"
            self.state.best_model_checkpoint = str(path)
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.at_its_end:  # goes on after the last checkpoint: transformers would take one step
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_best_model(self) -> None:
        path = Path(str(self.state.best_model_checkpoint))
        if wrong := damage(path):
            raise ValueError(f"The best checkpoint {path} is damaged: {wrong}; bring it back.")
        super()._load_best_model()


class Progress(ProgressCallback):
    """Shows a bar with the time left, without a dictionary printed at every log."""

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class Curves(TrainerCallback):
    """Draws the run so far, in its folder."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with said_when_unwritable(Path(args.output_dir)):
                write_curves(state.log_history, Path(args.output_dir))
