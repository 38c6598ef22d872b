"""Trains a classifier of texts or pairs of texts, from rows to metrics (`nystromer train`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction, TrainingArguments

from nystromer.recipes.classify.examples import (
    Example,
    LaterStarts,
    by_length,
    check_labels,
    collator,
    encode,
    label_numbers,
    label_of,
    length,
    split_off,
)
from nystromer.recipes.classify.model import load_classifier, new_classifier
from nystromer.recipes.classify.settings import Settings
from nystromer.recipes.classify.tasks import Columns, Source, named_task, own_files
from nystromer.recipes.files.fingerprints import of_model, of_rows
from nystromer.recipes.inputs.lines import BadLines
from nystromer.recipes.inputs.models import load_config
from nystromer.recipes.runs.curves import without_times
from nystromer.recipes.runs.run import Run, open_run
from nystromer.recipes.runs.shared import without_processes
from nystromer.recipes.runs.trainer import RunTrainer, batch_sizes, training_arguments, updates

LATER_STARTS = 1 / 3  # of texts that "tiny" reads as bytes


def train_classifier(settings: Settings, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains, and leaves model, tokenizer, metrics, curves and the command in the folder.

    Returns:
        {"rows": {"train": ...}, "dev": {"accuracy": ..., "f1" or "macro_f1": ..., "loss": ...}},
        and "test" likewise where there is one.

    Raises:
        ValueError: If an input is bad; nothing is written then.
        FloatingPointError: If a loss or a weight is not finite.
    """
    settings = settings.resolved()
    with open_run(folder, without_processes(settings), resume) as run:
        return train_in(run, settings)


def train_in(run: Run, settings: Settings) -> dict[str, Any]:
    """Trains in the folder of a run, as `train_classifier`."""
    bad_lines = BadLines(settings.skip_bad_lines)
    source = load_source(settings, bad_lines)
    if (done := run.begin(fingerprints(settings, source))) is not None:
        return done
    labels = label_numbers(source.splits["train"], source.columns.label)
    for split, rows in source.splits.items():
        check_labels(rows, source.columns.label, labels, split)
    names = [source.label_names.get(label, label) for label in labels]
    load = new_classifier if settings.model is None else load_classifier
    model, tokenizer = load(settings, names, source.columns)
    max_length, part = tokenizer.model_max_length, later_starts(settings, source.columns)
    longest = {"train": math.ceil(max_length / (1 - part))}  # so that later starts leave enough
    data = {
        split: encode(tokenizer, rows, source.columns, longest.get(split, max_length), labels)
        for split, rows in source.splits.items()
    }
    train: Any = data["train"]
    if part:
        train = LaterStarts(train, part, max_length, settings.seed)
    trainer = RunTrainer(
        model,
        arguments(settings, run.folder, len(data["train"])),
        train_dataset=train,
        eval_dataset={x: sort(data[x]) for x in data if x.startswith("dev")},
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=scores,
        token_dropout=settings.token_dropout or 0.0,
        lengths=[length(example) for example in data["train"]],
        sequence_parallel=settings.sequence_parallel,
    )
    run.train(trainer)
    metrics: dict[str, Any] = {
        "rows": {split: len(examples) for split, examples in data.items()},
        "cut": sum(length(x) >= max_length for x in data["train"]),
        "bad_lines": bad_lines.count,
    }
    metrics |= {x: last_scores(trainer, x) for x in data if x.startswith("dev")}
    if "test" in data:
        found = trainer.evaluate(sort(data["test"]), metric_key_prefix="test")
        metrics["test"] = without_prefix(found, "test_")
    run.finish(trainer, metrics)
    return metrics


def fingerprints(settings: Settings, source: Source) -> dict[str, str]:
    """Returns what a resumed run must find again: the rows, the model and the tokenizer."""
    columns = list(source.columns.checks)
    found = {
        f"the {split} rows": of_rows([row[name] for name in columns] for row in rows)
        for split, rows in source.splits.items()
    }
    if settings.model is not None:
        found[f"the model {settings.model}"] = of_model(settings.model, load_config(settings.model))
    if settings.tokenizer is not None:
        found[f"the tokenizer {settings.tokenizer}"] = of_model(settings.tokenizer)
    return found


def load_source(settings: Settings, bad_lines: BadLines) -> Source:
    """Reads the rows; a tenth of the training rows is held out as "dev" where nothing else is.

    Raises:
        ValueError: If they cannot be read, or no label stands in two training rows.
    """
    if settings.task is not None:
        source = named_task(settings.task, settings.data_dir, bad_lines)
    else:
        files = {"train": settings.train_file, "dev": settings.eval_file}
        source = own_files({**files, "test": settings.test_file}, settings.columns, bad_lines)
    splits, column = dict(source.splits), source.columns.label
    if len({label_of(row, column) for row in splits["train"]}) == len(splits["train"]):
        raise ValueError(
            f"The column {column!r} must hold labels of classes, got as many different values as "
            f"rows ({len(splits['train']):,})."
        )
    if not any(split.startswith("dev") for split in splits):
        splits["train"], splits["dev"] = split_off(splits["train"], column, seed=settings.seed)
    return replace(source, splits={split: rows[: settings.limit] for split, rows in splits.items()})


def later_starts(settings: Settings, columns: Columns) -> float:
    """Returns the part of a text in which it may begin anew.

    Raises:
        ValueError: If pairs of texts shall start later.
    """
    if settings.later_starts and columns.pair is not None:
        raise ValueError(
            f"`later_starts` is for single texts, got {settings.later_starts} for pairs; leave it "
            "out."
        )
    if settings.later_starts is not None:
        return settings.later_starts
    read_as_bytes = (settings.preset, settings.tokenizer, columns.pair) == ("tiny", "bytes", None)
    return LATER_STARTS if read_as_bytes else 0.0


def arguments(settings: Settings, folder: Path, count: int) -> TrainingArguments:
    """Returns what Trainer is told for `count` training rows."""
    together = settings.sequence_parallel
    sizes = batch_sizes(settings.batch_size or 1, settings.device_batch, together)
    steps = updates(count, sizes, together)
    logging_steps = max(1, steps // 20)
    return training_arguments(
        folder,
        num_train_epochs=settings.epochs,
        **sizes,
        learning_rate=settings.learning_rate,
        weight_decay=0.01,
        warmup_steps=0.1,
        eval_steps=steps,  # an epoch
        logging_steps=logging_steps,
        save_steps=5 * logging_steps,  # after a log, so that a resumed run logs the same
        seed=settings.seed,
    )


def sort(examples: list[Example]) -> Any:
    """Returns the examples with the longest first."""
    return [examples[i] for i in by_length(examples)]


def scores(answers: EvalPrediction) -> dict[str, float]:
    """Returns accuracy and F1: of the second of two classes, or the mean of all of more."""
    found = np.asarray(answers.predictions).argmax(-1)
    classes = np.asarray(answers.predictions).shape[-1]
    name, average = ("f1", "binary") if classes == 2 else ("macro_f1", "macro")
    f1 = f1_score(answers.label_ids, found, average=average, zero_division=0.0)
    return {"accuracy": float(accuracy_score(answers.label_ids, found)), name: float(f1)}


def last_scores(trainer: RunTrainer, split: str) -> dict[str, float]:
    """Returns what the last evaluation found on a split."""
    prefix = f"eval_{split}_"
    rows = [row for row in trainer.state.log_history if prefix + "loss" in row]
    return without_prefix(rows[-1], prefix)


def without_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Returns the metrics whose names begin so, without that beginning and without times."""
    return {
        name.removeprefix(prefix): value
        for name, value in without_times(metrics).items()
        if name.startswith(prefix)
    }
