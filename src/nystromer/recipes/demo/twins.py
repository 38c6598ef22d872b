"""One classifier twice, with exact and with Nyström attention, trained by transformers' Trainer."""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from nystromer.modules import NystromAttention
from nystromer.recipes.demo.data import Task, Window
from nystromer.recipes.demo.model import Classifier, ExactAttention
from nystromer.recipes.demo.settings import Settings
from nystromer.recipes.trainer import Progress


@dataclass(frozen=True)
class Twin:
    """A trained classifier and what was measured of it.

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
    """The same initial weights under exact and under Nyström attention."""
    torch.manual_seed(seed)
    exact = Classifier(ExactAttention, num_classes, settings)
    nystrom = Classifier(NystromAttention, num_classes, settings)
    nystrom.load_state_dict(exact.state_dict())
    return {"exact": exact, "nystrom": nystrom}


def train_twin(name: str, model: Classifier, task: Task, settings: Settings, seed: int) -> Twin:
    """Trains the model in place. The order of the batches depends on the seed alone."""
    peak_bytes = training_step_peak_bytes(model, task, settings)
    watch = StopWatch()
    exam = Exam()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            training_arguments(folder, len(task.train), settings, seed),
            train_dataset=Examples(task, task.train),
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
    """Windows as the model takes them."""

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


class StopWatch(TrainerCallback):
    """Seconds of every training step, and accuracy against the seconds spent so far."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.history: list[tuple[float, float]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.history.append((sum(self.seconds), kwargs["metrics"]["eval_accuracy"]))


def training_step_peak_bytes(model: Classifier, task: Task, settings: Settings) -> int:
    """The most memory that tensors hold at one time in a forward and backward, beyond the model.

    Counted by torch's profiler, allocation by allocation: unlike the memory of the process it does
    not depend on what ran before.
    """
    examples = Examples(task, task.train)
    batch = default_data_collator([examples[i] for i in range(settings.batch_size)])
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler announces itself
    activities = [torch.profiler.ProfilerActivity.CPU]
    model = copy.deepcopy(model)
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        model(**batch)["loss"].backward()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [e["args"] for e in events if e.get("name") == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return max(change["Total Allocated"] for change in changes) - before
