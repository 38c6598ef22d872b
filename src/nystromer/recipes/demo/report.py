"""Writes report.html, one file that needs nothing else, and metrics.json with all its numbers."""

from __future__ import annotations

import base64
import json
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from sklearn.metrics import recall_score

import nystromer
from nystromer.bench import Row
from nystromer.plots import scaling_figure
from nystromer.recipes.demo import claims
from nystromer.recipes.demo.data import Task
from nystromer.recipes.demo.figures import accuracy_figure, rows_figure
from nystromer.recipes.demo.sample import Sample, shaded_source
from nystromer.recipes.demo.settings import Settings
from nystromer.recipes.demo.twins import Twin


@dataclass(frozen=True)
class Results:
    """Holds what was measured.

    Args:
        busy_percent: Of all cores' time, what other programs took when the demo started.
    """

    settings: Settings
    seed: int
    rows: list[Row]
    task: Task
    twins: dict[str, Twin]
    sample: Sample
    seconds: float
    busy_percent: float


def write_report(output: Path, results: Results) -> None:
    """Writes metrics.json, three PNGs and report.html into a folder."""
    metrics = collect_metrics(results)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    figures = {
        "scaling": scaling_figure(results.rows),
        "accuracy": accuracy_figure(results.twins, results.task.majority_accuracy()),
        "rows": rows_figure(results.sample),
    }
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png")
    environment = Environment(
        loader=PackageLoader("nystromer.recipes.demo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        results=results,
        metrics=metrics,
        claims=claims,
        figures={name: _data_uri(output / f"{name}.png") for name in figures},
        source=Markup(shaded_source(results.sample.window.text, results.sample.nystrom)),
        exact_source=Markup(shaded_source(results.sample.window.text, results.sample.exact)),
    )
    (output / "report.html").write_text(page, encoding="utf-8")


def collect_metrics(results: Results) -> dict[str, Any]:
    """Returns every number of the report."""
    task, sample = results.task, results.sample
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seconds": results.seconds,
        "seed": results.seed,
        "settings": asdict(results.settings),
        "versions": {
            "nystromer": nystromer.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "busy_percent": results.busy_percent,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "scaling": [asdict(row) for row in results.rows],
        "task": {
            "packages": task.packages,
            "train_windows": Counter(window.package for window in task.train),
            "held_out_windows": Counter(window.package for window in task.held_out),
            "train_files": sorted({window.file for window in task.train}),
            "held_out_files": sorted({window.file for window in task.held_out}),
            "majority_accuracy": task.majority_accuracy(),
        },
        "twins": {name: _twin_metrics(task, twin) for name, twin in results.twins.items()},
        "accuracy_uncertainty": claims.accuracy_uncertainty(task, results.twins),
        "sample": {
            "file": sample.window.file,
            "start": sample.window.start,
            "answers": sample.answers,
            "agreement": sample.agreement(),
            "nystrom": sample.nystrom.round(4).tolist(),
            "same_weights": sample.same_weights.round(4).tolist(),
            "exact": sample.exact.round(4).tolist(),
        },
    }


def _twin_metrics(task: Task, twin: Twin) -> dict[str, Any]:
    labels = [task.packages.index(window.package) for window in task.held_out]
    classes: Sequence[int] = range(len(task.packages))
    recall = recall_score(labels, twin.predictions, labels=classes, average=None, zero_division=0.0)
    return {
        "accuracy": twin.accuracy,
        "macro_f1": twin.macro_f1,
        "accuracy_by_package": dict(zip(task.packages, np.asarray(recall).tolist(), strict=True)),
        "seconds_per_step": twin.seconds_per_step,
        "seconds_of_training": twin.seconds,
        "steps": twin.steps,
        "peak_bytes": twin.peak_bytes,
        "history": twin.history,
        "parameters": sum(p.numel() for p in twin.model.parameters()),
    }


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
