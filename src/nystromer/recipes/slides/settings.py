"""The settings of a training on bags, and their defaults, which are TransMIL's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nystromer.mil.ensemble import CLASSIFICATION, COX, LOSSES, NLL, SURVIVAL, TASKS
from nystromer.mil.models import MODELS
from nystromer.recipes.inputs.options import check_counts, check_one_of, check_rate

MOST_EPOCHS = 100_000  # more would never end
FOLDS = 5


@dataclass(frozen=True)
class Settings:
    """Holds the settings of a training.

    Args:
        features: The folder of feature files, or one table with a row a patch.
        labels: The table of labels; None: the table of features holds them.
        slides, label_column, time_column: As `read_labels`.
        task: "classification" or "survival".
        bag: "slide" or "patient".
        skip_missing: Go on without the slides that lack features or a label.
        models: Keys of `nystromer.mil.models.MODELS`.
        embed_dim, dropout: Of the models; None is what each has.
        folds: Parts of a cross-validation; None is 5, where there are no `splits`.
        splits: Files of own splits, instead.
        split_seed: Of the folds.
        validation: Share of what is not for test that watches the training; 0: nothing does, and
            all epochs are trained.
        seeds: Trainings of every fold, which differ in weights, order and dropout.
        epochs: The most.
        patience: Epochs without a lower validation loss before a training stops.
        batch_size: Bags an update.
        device_batch: Bags that a process takes at a time; None is one, and for Cox all.
        learning_rate, weight_decay: Of RAdam; biases and norms do not decay.
        class_weights: Weigh every bag by how rare its class is.
        loss: Of survival: "nll" or "cox"; None is "nll".
        bins: Intervals of "nll", between quantiles of the times of the events.
    """

    features: Path
    labels: Path | None = None
    slides: Path | None = None
    label_column: str | None = None
    time_column: str | None = None
    task: str = CLASSIFICATION
    bag: str = "slide"
    skip_missing: bool = False
    models: tuple[str, ...] = ("transmil",)
    embed_dim: int | None = None
    dropout: float | None = None
    folds: int | None = None
    splits: Path | None = None
    split_seed: int = 0
    validation: float = 0.2
    seeds: int = 3
    epochs: int = 200
    patience: int = 10
    batch_size: int = 1
    device_batch: int | None = None
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    class_weights: bool = False
    loss: str | None = None
    bins: int = 4

    def __post_init__(self) -> None:
        check_counts(self, "folds", "seeds", "epochs", "patience", "batch_size", "device_batch")
        check_counts(self, "embed_dim", "bins")
        check_rate(self.learning_rate)
        check_one_of("task", self.task, TASKS)
        for model in self.models:
            check_one_of("model", model, MODELS)
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError(
                f"`--model` must name every model once, got {', '.join(self.models) or 'none'}."
            )
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        if self.epochs > MOST_EPOCHS:
            raise ValueError(f"`epochs` must be at most {MOST_EPOCHS:,}, got {self.epochs:,}.")
        if self.folds == 1:
            raise ValueError("`--folds` must be at least 2, got 1; one part would be all.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, got {self.dropout}.")
        if not 0 <= self.validation <= 0.5:
            raise ValueError(f"`validation` must be from 0 to 0.5, got {self.validation}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"`weight_decay` must be at least 0 and finite, got {self.weight_decay}."
            )

    def _check_together(self) -> None:
        """Checks options that need or exclude one another."""
        if self.folds is not None and self.splits is not None:
            raise ValueError(f"--splits says what the folds are, got --folds {self.folds} too.")
        if self.task == SURVIVAL and self.class_weights:
            raise ValueError("`--class-weights` is for classes, got --task survival.")
        if self.loss is None:
            return
        check_one_of("loss", self.loss, LOSSES)
        if self.task == CLASSIFICATION:
            raise ValueError(f"`--loss` is for --task survival, got {self.loss} without it.")
        if self.loss == COX and (self.device_batch or self.batch_size) < 2:
            raise ValueError(
                "`--loss cox` compares the bags of a batch, got batches of 1; add --batch-size 16, "
                "or take --loss nll."
            )

    @property
    def options(self) -> dict[str, Any]:
        """Returns what the models are built with, but for their defaults."""
        options = {"embed_dim": self.embed_dim, "dropout": self.dropout}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def survival_loss(self) -> str | None:
        """Returns the loss of survival, None for classes."""
        return (self.loss or NLL) if self.task == SURVIVAL else None

    @property
    def bags_at_a_time(self) -> int | None:
        """Returns the bags that a process takes at a time; None: all of its share."""
        return self.device_batch or (None if self.loss == COX else 1)
