"""Trains one classifier twice, with exact and with Nyström attention."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from nystromer.modules import NystromAttention
from nystromer.recipes.demo.data import Task, Window
from nystromer.recipes.demo.model import Classifier, ExactAttention
from nystromer.recipes.demo.settings import Settings
from nystromer.recipes.runs.measure import StopWatch, step_peak_bytes
from nystromer.recipes.runs.trainer import Progress


@dataclass(frozen=True)
class Twin:
    """Holds a trained classifier and what was measured of it.

    Args:
        predictions: The package it names for each held-out window, as an index.
        seconds_per_step: Median over the training's steps: forward, backward and update.
        peak_bytes: The most that the tensors of a training step take at one time.
        history: At each evaluation, seconds spent in steps so far and held-out accuracy.
    """

    name: str
    model: Classifier
    predictions: np.ndarray
    accuracy: float
    macro_f1: float
    seconds_per_step: float
    seconds: float
    steps: int
    peak_bytes: int
    history: list[tuple[float, float]]


def twin_models(num_classes: int, settings: Settings, seed: int) -> dict[str, Classifier]:
    """Makes two models of the same initial weights, under exact and under Nyström attention."""
    torch.manual_seed(seed)
    exact = Classifier(ExactAttention, num_classes, settings)
    nystrom = Classifier(NystromAttention, num_classes, settings)
    nystrom.load_state_dict(exact.state_dict())
    return {"exact": exact, "nystrom": nystrom}


def train_twin(name: str, model: Classifier, task: Task, settings: Settings, seed: int) -> Twin:
    """Trains the model in place. The order of the batches depends on the seed alone."""
    train = Examples(task, task.train)
    batch = default_data_collator([train[i] for i in range(settings.batch_size)])
    peak_bytes = step_peak_bytes(model, batch)
    watch = StopWatch()
    exam = Exam()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            training_arguments(folder, len(task.train), settings, seed),
            train_dataset=train,
            eval_dataset=Examples(task, task.held_out),
            compute_metrics=exam,
            callbacks=[watch],
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress())
        trainer.train()
    return Twin(
        name=name,
        model=model.eval(),
        predictions=exam.predictions,
        accuracy=exam.scores["accuracy"],
        macro_f1=exam.scores["macro_f1"],
        seconds_per_step=statistics.median(watch.seconds),
        seconds=sum(watch.seconds),
        steps=len(watch.seconds),
        peak_bytes=peak_bytes,
        history=watch.history,
    )


def training_arguments(
    folder: str, num_windows: int, settings: Settings, seed: int
) -> TrainingArguments:
    """Returns what Trainer is told."""
    steps = settings.epochs * -(-num_windows // settings.batch_size)
    return TrainingArguments(
        folder,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        eval_strategy="steps",
        eval_steps=1 / 3,  # of all steps, and after the last
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


class Examples(Dataset[dict[str, Any]]):
    """Gives windows as the model takes them."""

    def __init__(self, task: Task, windows: Sequence[Window]) -> None:
        self.packages, self.windows = task.packages, windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        window = self.windows[index]
        input_ids = torch.tensor(list(window.text))
        return {"input_ids": input_ids, "labels": self.packages.index(window.package)}


class Exam:
    """Scores the model's answers, and keeps the last: those after training."""

    predictions: np.ndarray
    scores: dict[str, float]

    def __call__(self, answers: EvalPrediction) -> dict[str, float]:
        self.predictions = np.asarray(answers.predictions).argmax(-1)
        labels = answers.label_ids
        self.scores = {
            "accuracy": float(accuracy_score(labels, self.predictions)),
            "macro_f1": float(f1_score(labels, self.predictions, average="macro")),
        }
        return self.scores
