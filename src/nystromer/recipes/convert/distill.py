"""Trains an encoder with Nyström attention to say what its exact twin says (self-distillation)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments

from nystromer.hf import nystromize
from nystromer.hf.calibration.calibrate import uniform
from nystromer.hf.calibration.fidelity import Fidelity, exact_states, last_hidden, measure
from nystromer.hf.calibration.survey import survey
from nystromer.hf.conversion.interface import CONV
from nystromer.hf.conversion.plan import Plan
from nystromer.recipes.inputs.options import check_counts
from nystromer.recipes.runs import trainer
from nystromer.recipes.runs.run import Run
from nystromer.recipes.runs.trainer import RunTrainer


@dataclass(frozen=True)
class Settings:
    """Holds the settings of a distillation.

    Args:
        steps: Updates at most; early stopping may end it before.
        batch_size: Passages an update.
        learning_rate: The most that AdamW takes, after a tenth of the steps; it falls to 0.
        conv_learning_rate: The same of the convolutions.
        eval_every: Updates between two looks at the held-out passages.
        patience: Looks without a lower loss after which it stops.
        calibration_passages: For the start, see `calibrate`.
        seed: Of the order of the passages.
    """

    steps: int = 300
    batch_size: int = 4
    learning_rate: float = 1e-4
    conv_learning_rate: float = 1e-3
    eval_every: int = 25
    patience: int = 5
    calibration_passages: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps", "batch_size", "eval_every", "patience")


@dataclass(frozen=True)
class Distilled:
    """Holds the student, and how close to its exact twin it was at each stage, on held-out text."""

    student: PreTrainedModel
    stages: dict[str, Fidelity]
    steps: int


def distill(
    run: Run,
    model: PreTrainedModel,
    tokenizer: Any,
    train: Tensor,
    held_out: Tensor,
    *,
    num_landmarks: int = 64,
    plan: Plan | None = None,
    settings: Settings | None = None,
) -> Distilled:
    r"""Trains a copy of the encoder with Nyström attention to say what the exact model says.

    Loss of a batch, with the hidden
    states h_l of all layers (h*_l the exact model's) and the mean e of the last over the tokens:

        mean_l ‖h_l - h*_l‖² / ‖h*_l‖²  +  mean(1 - cos(e, e*))

    Args:
        run: Where it is written, and where an interrupted one goes on.
        model: An encoder with exact attention; it is not changed.
        tokenizer: Its tokenizer, which is written beside it.
        train: Token ids, [passages, N].
        held_out: The same, for early stopping and the figures.
        num_landmarks: M.
        plan: Where to start, instead of a plan without exact heads calibrated on `train`.
        settings: Sizes and rates.

    Raises:
        ValueError: As `calibrate`.
        FloatingPointError: If a loss or a weight is not finite.
    """
    settings = settings or Settings()
    if plan is None:
        batches = [{"input_ids": x} for x in train[: settings.calibration_passages].split(4)]
        best = uniform(survey(model, batches, num_landmarks))[1]
        plan = Plan(model.config.model_type, tuple(best))
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    student = nystromize(copy.deepcopy(model), plan=plan)
    for module in student.modules():  # the exact twin has none either
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    checks = [{"input_ids": x} for x in held_out.split(settings.batch_size)]
    exact = exact_states(teacher, checks)
    plain = nystromize(copy.deepcopy(model), num_landmarks)
    before = measure([last_hidden(plain, x) for x in checks], exact)
    calibrated = measure([last_hidden(student.eval(), x) for x in checks], exact)
    trainer = Distillation(
        teacher,
        student,
        training_arguments(run.folder, settings),
        train_dataset=Passages(train),
        eval_dataset=Passages(held_out),
        processing_class=tokenizer,
        optimizers=(optimizer(student, settings), None),
        callbacks=[EarlyStoppingCallback(settings.patience)],
    )
    run.train(trainer)
    student, steps = student.eval(), trainer.state.global_step
    after = measure([last_hidden(student, x) for x in checks], exact)
    stages = {"swapped": before, "calibrated": calibrated, f"after {steps} steps": after}
    if not all(math.isfinite(x) for stage in stages.values() for x in asdict(stage).values()):
        raise FloatingPointError("The distilled model says NaN on held-out passages.")
    metrics = {"steps": steps, **{name: asdict(stage) for name, stage in stages.items()}}
    run.finish(trainer, metrics)
    return Distilled(student, stages, steps)


def training_arguments(folder: str | Path, settings: Settings) -> TrainingArguments:
    """Returns what Trainer is told."""
    return trainer.training_arguments(
        Path(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=settings.steps // 10,
        weight_decay=0.0,
        eval_steps=settings.eval_every,
        save_steps=settings.eval_every,
        logging_steps=settings.eval_every,
        load_best_model_at_end=True,
        prediction_loss_only=True,
        seed=settings.seed,
        dataloader_pin_memory=False,
    )


def optimizer(student: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Returns AdamW with a rate of its own for the convolutions, whose taps are few and small."""
    named = list(student.named_parameters())
    taps = [p for name, p in named if name.endswith(CONV)]
    others = [p for name, p in named if not name.endswith(CONV)]
    groups = [
        {"params": others, "lr": settings.learning_rate},
        {"params": taps, "lr": settings.conv_learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0)


class Passages(Dataset[dict[str, Tensor]]):
    """Gives token ids [passages, N] one by one, as the model takes them."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index]}


class Distillation(RunTrainer):
    """Trains as every run does, with the answers of the exact twin for labels."""

    def __init__(self, teacher: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher: nn.Module = nn.Module.to(teacher, self.args.device)
        self.can_return_loss = True  # without labels too

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        with torch.no_grad():
            wanted = self.teacher(**inputs, output_hidden_states=True).hidden_states
        outputs = model(**inputs, output_hidden_states=True)
        loss = distance(outputs.hidden_states, wanted)
        return (loss, outputs) if return_outputs else loss


def distance(hidden: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    """Returns the loss of `distill`, from the hidden states [B, N, E] of every layer."""
    layers = [
        (h - w).square().sum() / w.square().sum() for h, w in zip(hidden, wanted, strict=True)
    ]
    cosine = F.cosine_similarity(hidden[-1].mean(1), wanted[-1].mean(1))
    return torch.stack(layers).mean() + (1 - cosine).mean()
