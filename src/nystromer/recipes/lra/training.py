"""Trains one attention on one task with one seed, and measures accuracy, time and memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict
from sklearn.metrics import accuracy_score
from transformers import EvalPrediction, set_seed
from transformers.trainer_utils import PredictionOutput

from nystromer.checks import check_positive
from nystromer.recipes.inputs.options import check_rate
from nystromer.recipes.lra import attentions
from nystromer.recipes.lra.data import load
from nystromer.recipes.lra.model import Classifier, collate
from nystromer.recipes.lra.tasks import TASKS, Task
from nystromer.recipes.runs.measure import StopWatch, step_peak_bytes
from nystromer.recipes.runs.run import Run, device_name, open_run
from nystromer.recipes.runs.trainer import RunTrainer, training_arguments

LOOKS = 20  # at the validation rows in a training; the best of them is kept
TRIAL = 100  # steps below which rows that are not trained on are not made either
TRIAL_ROWS = 100  # rows that a trial is validated and tested on


def run_task(
    name: str,
    attention: str,
    output: Path,
    *,
    data_dir: Path | None = None,
    cache: Path | None = None,
    fraction: float = 1.0,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    learning_rate: float | None = None,
    num_landmarks: int = 64,
    rows: int | None = None,
    eval_rows: int | None = None,
    looks: int = LOOKS,
    seed: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains on the task and returns the metrics, which the folder `output` keeps.

    The weights that did best on the validation rows are those tested. Times are medians over the
    steps since the run was begun or last resumed.

    Args:
        name, attention: Of `tasks.TASKS` and `attentions.ATTENTIONS`.
        output: A new folder, or with `resume` that of the same run.
        data_dir, cache, rows, eval_rows: As `data.load`; fewer than 100 steps take no more rows
            than they train on, and 100 to validate and to test.
        fraction: Of the table's steps; its warm-up is cut alike.
        steps: Instead of the fraction.
        batch_size, learning_rate: The table's if None.
        accumulate: Parts of a batch that are computed one after the other.
        num_landmarks: M, of Nyström attention, and FLARE's latents.
        looks: At the validation rows.
        seed: Of weights and order; the data do not depend on it.

    Raises:
        ValueError: If a name is unknown, a number out of range, the data cannot be had, the folder
            holds something else, or a batch does not fit into memory.
        FloatingPointError: If a loss or a weight is not finite.
    """
    task = find_task(name)
    steps = schedule(task, fraction, steps)
    batch_size = task.batch_size if batch_size is None else batch_size
    check_options(batch_size, accumulate, looks, num_landmarks)
    check_rate(learning_rate)
    attentions.check_name(attention)
    if steps < TRIAL:
        rows = steps * batch_size if rows is None else rows
        eval_rows = min(rows, TRIAL_ROWS) if eval_rows is None else eval_rows
    settings = {
        "task": name,
        "attention": attention,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": task.learning_rate if learning_rate is None else learning_rate,
        "num_landmarks": num_landmarks,
        "limits": [rows, eval_rows],
        "looks": looks,
        "seed": seed,
    }
    with open_run(output, settings, resume) as run:
        data, about = load(name, data_dir, cache=cache, rows=rows, eval_rows=eval_rows)
        if (metrics := run.begin({f"the data of {name}": about["content"]})) is not None:
            return metrics
        return train_on(run, data, about)


def train_on(run: Run, data: DatasetDict, about: dict[str, Any]) -> dict[str, Any]:
    """Trains in the folder of a run, as `run_task`."""
    settings = run.settings
    task, attention, accumulate = (
        TASKS[settings["task"]],
        settings["attention"],
        settings["accumulate"],
    )
    steps, batch_size = settings["steps"], settings["batch_size"]
    set_seed(settings["seed"])
    model = Classifier(task, attention, settings["num_landmarks"])
    watch = StopWatch()
    trainer = make_trainer(run.folder, task, model, data, settings, watch)
    try:
        run.train(trainer)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"A batch of {batch_size // accumulate} does not fit into memory; pass --accumulate "
            f"{2 * accumulate}, which computes each batch in more parts."
        ) from error
    answers = trainer.predict(data["test"])
    tokens = np.sum(token_counts(data["train"])) / len(data["train"])  # of a row
    median = statistics.median(watch.seconds) if watch.seconds else None
    metrics = {
        **settings,
        "rows": {split: len(found) for split, found in data.items()},
        "data": about["fingerprint"],
        "source": attentions.source(attention),
        "schedule": steps / task.steps,
        "accuracy": accuracy(answers)["accuracy"],
        "validation_accuracy": trainer.state.best_metric,
        "ms_per_step": 1e3 * median if median else None,
        "tokens_per_second": tokens * batch_size / median if median else None,
        "peak_mib": step_peak_bytes(model.cpu(), full_document(task)) / 2**20,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": device_name(),
        "torch": version("torch"),
        "notes": about["notes"],
    }
    run.finish(trainer, metrics)
    return metrics


def find_task(name: str) -> Task:
    """Returns the task of that name.

    Raises:
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"The task must be one of {', '.join(TASKS)}, got {name!r}.")
    return TASKS[name]


def schedule(task: Task, fraction: float, steps: int | None) -> int:
    """Returns the number of steps.

    Raises:
        ValueError: If the fraction is not in (0, 1] or there would be no step.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`--fraction` must be above 0 and at most 1, got {fraction}.")
    steps = round(fraction * task.steps) if steps is None else steps
    check_positive("--steps", steps)
    return steps


def check_options(batch_size: int, accumulate: int, looks: int, num_landmarks: int) -> None:
    """Checks the numbers of a training.

    Raises:
        ValueError: If one is below 1, or the parts do not divide the batch.
    """
    for option, number in (
        ("--batch-size", batch_size),
        ("--accumulate", accumulate),
        ("--looks", looks),
        ("--num-landmarks", num_landmarks),
    ):
        check_positive(option, number)
    if batch_size % accumulate:
        raise ValueError(f"`--accumulate` must divide the batch of {batch_size}, got {accumulate}.")


def make_trainer(
    folder: Path,
    task: Task,
    model: Classifier,
    data: DatasetDict,
    settings: Mapping[str, Any],
    watch: StopWatch,
) -> RunTrainer:
    """Returns the trainer of a task."""
    steps, part = settings["steps"], settings["batch_size"] // settings["accumulate"]
    every = max(1, steps // settings["looks"])
    counts = token_counts(data["train"])
    return RunTrainer(
        model,
        training_arguments(
            folder,
            max_steps=steps,
            warmup_steps=round(task.warmup_steps * steps / task.steps),
            learning_rate=settings["learning_rate"],
            weight_decay=0.0,
            per_device_train_batch_size=part,
            per_device_eval_batch_size=part,
            gradient_accumulation_steps=settings["accumulate"],
            eval_steps=every,
            save_steps=every,
            logging_steps=every,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            seed=settings["seed"],
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=collate,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=[watch],
        lengths=None if len(set(counts[0])) == 1 else [max(x) for x in zip(*counts, strict=True)],
    )


def accuracy(answers: EvalPrediction | PredictionOutput) -> dict[str, float]:
    """Returns the share of rows that are answered right."""
    return {"accuracy": float(accuracy_score(answers.label_ids, answers.predictions))}


def token_counts(rows: Dataset) -> list[list[int]]:
    """Returns the tokens of every row, of the first and of the second documents if there are."""
    columns = [name for name in ("input_ids", "other_ids") if name in rows.column_names]
    table = rows.with_format("arrow")[:]
    return [pc.list_value_length(table[name]).to_pylist() for name in columns]


def full_document(task: Task) -> dict[str, torch.Tensor]:
    """Returns a batch of one row of the greatest length, for the memory that it takes."""
    row: dict[str, Any] = {"input_ids": np.zeros(task.max_length), "labels": 0}
    if task.documents == 2:
        row["other_ids"] = row["input_ids"]
    return collate([row])
