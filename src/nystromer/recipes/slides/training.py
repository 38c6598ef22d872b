"""Trains models of bags on every fold with every seed, into one table (`nystromer mil train`).

OUTPUT/run.json, fold_0/seed_0/ (a run of its own: weights, config.json, predictions.csv, ...), ...
of several models OUTPUT/MODEL/fold_0/seed_0/; then table.csv, scores.csv, roc.png or survival.png,
and metrics.json last of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nystromer.mil.cohort import Cohort
from nystromer.mil.ensemble import Spec
from nystromer.recipes.files.errors import said_when_unwritable
from nystromer.recipes.files.fingerprints import of_rows
from nystromer.recipes.runs.claim import is_first
from nystromer.recipes.runs.run import Run, open_run
from nystromer.recipes.slides.data import (
    BagRows,
    Track,
    fingerprints,
    read_cohort,
    silently,
    targets,
)
from nystromer.recipes.slides.folds import Fold, make_folds
from nystromer.recipes.slides.scores import NAMES
from nystromer.recipes.slides.settings import Settings
from nystromer.recipes.slides.tables import (
    PREDICTIONS,
    Score,
    prediction_rows,
    scores_of,
    summary,
    write_results,
    write_rows,
)
from nystromer.recipes.slides.trainer import BagTrainer, make_trainer, spec_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What all trainings of a run share."""

    settings: Settings
    cohort: Cohort
    classes: list[str]
    folds: list[Fold]

    def rows(self, numbers: list[int]) -> BagRows:
        """Returns the bags of these numbers with their targets."""
        bags = [self.cohort.bags[i] for i in numbers]
        return BagRows(bags, targets([self.cohort.cases[x.id] for x in bags], self.classes))


def train_slides(
    settings: Settings,
    output: Path,
    *,
    resume: bool = False,
    track: Track = silently,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Trains, and leaves models, predictions, the table and curves in the folder.

    Args:
        settings: What is trained on what.
        output: A new folder, or with `resume` that of the same run: finished trainings are not
            repeated, and the one that was interrupted goes on.
        resume: Go on with an interrupted run.
        track: Goes over bags, say with a progress bar.
        say: Is told of every training that has ended.

    Returns:
        {"table": a row a model and score, "scores": a row a training}.

    Raises:
        ValueError: If an input is bad; nothing is written then.
        FloatingPointError: If a loss or a weight is not finite.
    """
    with open_run(output, asdict(settings), resume) as run:
        cohort, labels = read_cohort(settings, track)
        classes = replace(labels, cases=cohort.cases).classes()
        study = Study(settings, cohort, classes, make_folds(settings, cohort, labels))
        found = fingerprints(cohort, track) | {"the folds": fold_names(study)}
        if (done := run.begin(found)) is not None:
            return done
        scores = [
            train_part(run, study, model, fold, seed, say)
            for model in settings.models
            for fold in study.folds
            for seed in range(settings.seeds)
        ]
        metrics = {"table": summary(scores), "scores": scores}
        if is_first():
            folders = {model: folder_of(settings, model) for model in settings.models}
            with said_when_unwritable(output):
                write_results(output, metrics, folders)
            run.close(metrics)
        return metrics


def folder_of(settings: Settings, model: str) -> str:
    """Returns the folder of a model's folds in that of the run."""
    return model if len(settings.models) > 1 else "."


def fold_names(study: Study) -> str:
    """Returns the fingerprint of the folds."""
    names = [bag.id for bag in study.cohort.bags]
    return of_rows(
        [fold.name, *([names[i] for i in part] for part in (fold.train, fold.val, fold.test))]
        for fold in study.folds
    )


def train_part(run: Run, study: Study, model: str, fold: Fold, seed: int, say: Say) -> Score:
    """Trains one model on one fold with one seed, or returns what it came to before."""
    settings, cohort = study.settings, study.cohort
    name = f"{folder_of(settings, model)}/{fold.name}/seed_{seed}"
    about: dict[str, Any] = {"model": model, "fold": fold.name, "seed": seed}
    with run.part(name, about) as part:
        if (done := part.begin(run.inputs)) is not None:
            return done
        first = cohort.bags[0]
        cases = [cohort.cases[cohort.bags[i].id] for i in fold.train]
        spec = spec_of(settings, model, first.width, first.encoder, study.classes, cases)
        train, val, test = (study.rows(x) for x in (fold.train, fold.val, fold.test))
        trainer = make_trainer(part.folder, settings, spec, train, val, seed)
        part.train(trainer)
        rows = predict_rows(trainer, spec, test, cohort)
        score: Score = {**about, **scores_of(spec, rows), **ended(trainer)}
        if trainer.args.should_save:
            write_rows(rows, part.folder / PREDICTIONS)
        part.finish(trainer, score)
        found = ", ".join(f"{NAMES[x]} {score[x]:.3f}" for x in NAMES if x in score)
        say(f"{model}, {fold.name}, seed {seed}: {found}")
        return score


def predict_rows(
    trainer: BagTrainer, spec: Spec, test: BagRows, cohort: Cohort
) -> list[dict[str, Any]]:
    """Returns what is known and what is answered of every bag for test."""
    logits = torch.as_tensor(trainer.predict(test).predictions)
    answers = spec.answers(logits).tolist()
    return [
        {
            **prediction_rows(spec, bag.id, answer),
            **{name: x for name, x in vars(cohort.cases[bag.id]).items() if x is not None},
        }
        for bag, answer in zip(test.bags, answers, strict=True)
    ]


def ended(trainer: BagTrainer) -> dict[str, Any]:
    """Returns after how many epochs a training ended, and the one whose weights were kept."""
    state = trainer.state
    epochs = round(float(state.epoch or 0))
    steps = max(1, state.global_step // max(1, epochs))
    best = state.best_global_step
    return {"epochs": epochs, "best_epoch": best // steps if best else epochs}
