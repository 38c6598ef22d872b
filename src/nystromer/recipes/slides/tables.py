"""The tables of a training: predictions of bags, scores of trainings, and the one that sums up."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from nystromer.mil.ensemble import CLASSIFICATION, Spec
from nystromer.recipes.files.outputs import new_file
from nystromer.recipes.files.tables import write_csv
from nystromer.recipes.slides.scores import NAMES, classification_scores, concordance

PREDICTIONS, TABLE, SCORES = "predictions.csv", "table.csv", "scores.csv"
Row = dict[str, Any]
Score = dict[str, Any]  # model, fold, seed, scores, epochs


def column_of(name: str) -> str:
    """Returns the column of the probability of a class."""
    return f"probability_{name}"


def prediction_rows(spec: Spec, name: str, answer: Sequence[float]) -> Row:
    """Returns a bag's row: what is predicted and the probability of each class, or the risk."""
    if spec.task != CLASSIFICATION:
        return {spec.bag: name, "risk": answer[0]}
    best = spec.classes[int(np.argmax(answer))]
    shares = {column_of(x): p for x, p in zip(spec.classes, answer, strict=True)}
    return {spec.bag: name, "predicted": best, **shares}


def scores_of(spec: Spec, rows: Sequence[Row]) -> dict[str, float]:
    """Returns the scores of rows that hold the truth too."""
    if spec.task != CLASSIFICATION:
        times, events, risks = ([row[x] for row in rows] for x in ("time", "event", "risk"))
        return {"c_index": concordance(times, events, risks)}
    labels = [spec.classes.index(row["label"]) for row in rows]
    shares = np.array([[row[column_of(x)] for x in spec.classes] for row in rows])
    return classification_scores(labels, shares)


def summary(scores: Sequence[Score]) -> list[Row]:
    """Returns a row a model and score: its mean, and how far it spreads.

    `over_folds` is the standard deviation over folds of the means over seeds, and `over_seeds` that
    over seeds of the means over folds; None where there is one.
    """
    rows = []
    for model in dict.fromkeys(x["model"] for x in scores):
        of_model = [x for x in scores if x["model"] == model]
        for name in (x for x in NAMES if x in of_model[0]):
            rows.append(
                {
                    "model": model,
                    "score": name,
                    "mean": mean(x[name] for x in of_model),
                    "over_folds": spread(of_model, name, "fold"),
                    "over_seeds": spread(of_model, name, "seed"),
                }
            )
    return rows


def spread(scores: Sequence[Score], name: str, over: str) -> float | None:
    """Returns the standard deviation of a score over folds or over seeds."""
    groups: dict[Any, list[float]] = {}
    for x in scores:
        groups.setdefault(x[over], []).append(x[name])
    return stdev(map(mean, groups.values())) if len(groups) > 1 else None


def write_results(output: Path, metrics: Mapping[str, Any], folders: Mapping[str, str]) -> None:
    """Writes table.csv, scores.csv and the curves, over what an interrupted run may have left.

    Args:
        output: The folder of the run.
        metrics: "table" and "scores".
        folders: Of each model's folds, in that of the run.
    """
    from nystromer.recipes.slides.curves import roc_figure, survival_figure

    write_rows(metrics["table"], output / TABLE)
    write_rows(metrics["scores"], output / SCORES)
    predictions = {
        model: [
            read_rows(output / folder / x["fold"] / f"seed_{x['seed']}" / PREDICTIONS)
            for x in metrics["scores"]
            if x["model"] == model
        ]
        for model, folder in folders.items()
    }
    survival = any(row["score"] == "c_index" for row in metrics["table"])
    draw, name = (survival_figure, "survival.png") if survival else (roc_figure, "roc.png")
    draw(predictions).savefig(output / name)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes a .csv file, in place of one that an interrupted run left."""
    path.unlink(missing_ok=True)
    with new_file(path, ".csv") as partial:
        write_csv(rows, partial)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a table that `write_rows` wrote; every cell is text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
