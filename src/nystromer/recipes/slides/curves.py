"""The curves of a training's predictions: ROC of classes, Kaplan and Meier's of survival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nystromer.plots.style import BLUE, GREEN, GREY, ORANGE, RED, grid, label

Rows = Sequence[Mapping[str, str]]  # the predictions of one training, as text
GRID = np.linspace(0, 1, 201)


def roc_figure(predictions: Mapping[str, Sequence[Rows]]) -> Figure:
    """Draws the mean ROC curve of the trainings of each model, and how far they spread.

    Two classes have one curve, that of the second; of more each has its own, against the others.
    """
    figure, panels = panels_of(predictions)
    for axes, (model, trainings) in zip(panels, predictions.items(), strict=True):
        columns = [x for x in trainings[0][0] if x.startswith("probability_")]
        drawn = columns[1:] if len(columns) == 2 else columns
        for colour, column in zip(cycle((BLUE, ORANGE, GREEN, RED)), drawn, strict=False):
            name = column.removeprefix("probability_")
            found = [roc(rows, name, column) for rows in trainings]
            curves, areas = np.array([x for x, _ in found]), [x for _, x in found]
            middle, far = curves.mean(0), curves.std(0)
            axes.plot(GRID, middle, color=colour, label=f"{name}, AUC {np.mean(areas):.3f}")
            low, high = np.clip(middle - far, 0, 1), np.clip(middle + far, 0, 1)
            axes.fill_between(GRID, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axes.legend(frameon=False, loc="lower right")
        label(axes, model, "false positives", "true positives")
    return figure


def roc(rows: Rows, name: str, column: str) -> tuple[np.ndarray, float]:
    """Returns the share of true positives at the shares GRID of false ones, and the area."""
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = [row["label"] == name for row in rows]
    shares = [float(row[column]) for row in rows]
    false, true, _ = roc_curve(truth, shares)
    curve = np.interp(GRID, false, true)
    curve[0] = 0.0
    return curve, float(roc_auc_score(truth, shares))


def survival_figure(predictions: Mapping[str, Sequence[Rows]]) -> Figure:
    """Draws survival of the bags with a risk above and below the median of their training's test
    part, all trainings together."""
    figure, panels = panels_of(predictions)
    for axes, (model, trainings) in zip(panels, predictions.items(), strict=True):
        groups: dict[bool, list[tuple[float, bool]]] = {False: [], True: []}
        for rows in trainings:
            middle = float(np.median([float(row["risk"]) for row in rows]))
            for row in rows:
                ended = (float(row["time"]), row["event"] == "True")
                groups[float(row["risk"]) > middle].append(ended)
        for high, colour, name in ((False, BLUE, "lower risk"), (True, RED, "higher risk")):
            times, living = kaplan_meier(groups[high])
            axes.step(times, living, where="post", color=colour, label=name)
        axes.set_ylim(0, 1.02)
        axes.legend(frameon=False)
        label(axes, model, "time", "share that lives")
    return figure


def kaplan_meier(ended: Sequence[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns times, from 0 on, and the share that lives behind each: the product over events of
    1 - events at the time / who was looked at until then.

    Args:
        ended: (time, whether the event was seen) of everybody.
    """
    times = np.array([time for time, _ in ended])
    seen = np.array([event for _, event in ended], bool)
    every = np.unique(times)
    dying = (times[None] == every[:, None]) & seen[None]
    watched = times[None] >= every[:, None]
    living = np.cumprod(1 - dying.sum(1) / watched.sum(1))
    return np.concatenate([[0.0], every]), np.concatenate([[1.0], living])


def panels_of(models: Mapping[str, Any]) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a plot a model, side by side."""
    figure = Figure(figsize=(4.6 * len(models), 4.2), dpi=120, layout="constrained")
    panels = list(figure.subplots(1, len(models), squeeze=False)[0])
    for axes in panels:
        grid(axes)
    return figure, panels
