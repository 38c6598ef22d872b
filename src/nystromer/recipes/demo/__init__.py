"""Shows the main job on this machine (`nystromer demo`): cost by length, a classifier's twins, and
what they read."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import psutil
from tqdm import tqdm

from nystromer.backends.native import library
from nystromer.bench import Row, sweep
from nystromer.recipes.demo.claims import both_times
from nystromer.recipes.demo.data import stdlib_task
from nystromer.recipes.demo.report import Results, write_report
from nystromer.recipes.demo.sample import read_sample
from nystromer.recipes.demo.settings import Settings
from nystromer.recipes.demo.twins import train_twin, twin_models
from nystromer.recipes.files.outputs import new_folder

SCALING_METHODS = ("exact", "blocked" if library.MISSING else "native")


def run_demo(
    output: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    settings: Settings | None = None,
) -> Path:
    """Measures, trains, and writes report.html, its PNGs and metrics.json; about four minutes.

    Args:
        output: A new folder, an empty one or a former result of the demo, which is replaced.
        seed: Of the split of files, the initial weights and the order of the batches.
        epochs: Instead of the settings' own.
        settings: Sizes of everything; the defaults are the demo.

    Returns:
        The path of report.html.

    Raises:
        ValueError: If `output` holds anything else, epochs is below 1, this Python comes without
            the source of its standard library, or nothing could be timed.
    """
    output, settings = Path(output), settings or Settings()
    if epochs is not None:
        settings = dataclasses.replace(settings, epochs=epochs)
    with new_folder(output, made_by="nystromer demo") as partial:
        write_report(partial, measure(settings, seed))
    return output / "report.html"


def measure(settings: Settings, seed: int) -> Results:
    """Measures and trains all that the report shows."""
    start = time.perf_counter()
    busy_percent = psutil.cpu_percent(interval=1.0)
    task = stdlib_task(
        length=settings.length,
        num_packages=settings.num_packages,
        max_windows=settings.max_windows,
        seed=seed,
    )
    rows = measure_scaling(settings)
    twins = {}
    for name, model in twin_models(len(task.packages), settings, seed).items():
        tqdm.write(f"Training the twin with {name} attention")
        twins[name] = train_twin(name, model, task, settings, seed)
    sample = read_sample(task, twins, settings)
    seconds = time.perf_counter() - start
    return Results(settings, seed, rows, task, twins, sample, seconds, busy_percent)


def measure_scaling(settings: Settings) -> list[Row]:
    """Measures exact and Nyström attention, forward, shortest first."""
    tqdm.write("Measuring attention by length")
    with tqdm(total=len(settings.scaling_ns) * len(SCALING_METHODS)) as bar:
        rows = sweep(
            settings.scaling_ns,
            SCALING_METHODS,
            num_landmarks=settings.num_landmarks,
            repeats=settings.scaling_repeats,
            time_limit=settings.scaling_time_limit,
            on_case=lambda case: bar.set_postfix_str(f"{case.method}, N = {case.n:,}"),
            on_row=lambda _: bar.update(),
        )
    if not both_times(rows):
        raise ValueError(f"Nothing could be measured: {rows[0].note or rows[1].note}.")
    return rows
