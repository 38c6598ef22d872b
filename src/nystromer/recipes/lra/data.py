"""Gives the data of a task by its name: made, read or downloaded once, and then kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from nystromer.checks import check_positive
from nystromer.recipes.lra import image, listops, pathfinder, pathfinder_files, retrieval, text
from nystromer.recipes.lra.store import Prepared, fingerprints, need_files, stored


def default_cache() -> Path:
    """Returns the folder where data sets are kept if no other is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nystromer" / "lra"


def load(
    task: str,
    data_dir: Path | None = None,
    *,
    cache: Path | None = None,
    seed: int = 0,
    rows: int | None = None,
    eval_rows: int | None = None,
    processes: int | None = None,
) -> tuple[DatasetDict, dict[str, Any]]:
    """Returns the splits train, validation and test, and what is known of them.

    Args:
        task: A name of `tasks.TASKS`.
        data_dir: Where files are to be read from; without it ListOps and Pathfinder are generated,
            Text and Image come from the Hub.
        cache: Where data sets are kept.
        seed: Of what is generated or held out.
        rows, eval_rows: Training and other rows to take at most; a generated set has no more.
        processes: To generate with.

    Raises:
        ValueError: If files are missing or damaged, or the Hub cannot be reached.
    """
    options = (("--rows", rows), ("--eval-rows", eval_rows), ("--processes", processes))
    for option, number in options:
        if number is not None:
            check_positive(option, number)
    if data_dir is not None and not data_dir.is_dir():
        raise ValueError(f"`--data-dir` must be a folder, got {data_dir}, which is none.")
    made_from, make = origin(task, data_dir, seed, rows, eval_rows, processes)
    made_from = {"task": task, "seed": seed, **made_from}
    found, about = stored(task, cache or default_cache(), made_from, make)
    limits = {"train": rows, "validation": eval_rows, "test": eval_rows}
    for split, limit in limits.items():
        if limit is not None and limit < len(found[split]):
            found[split] = found[split].shuffle(seed=seed).select(range(limit))
    return found.with_format("numpy"), about


def origin(
    task: str,
    data_dir: Path | None,
    seed: int,
    rows: int | None,
    eval_rows: int | None,
    processes: int | None,
) -> tuple[dict[str, Any], Callable[[], Prepared]]:
    """Returns what decides about the rows, and the function that makes them."""
    if data_dir is None:
        match task:
            case "listops" | "pathfinder":
                module = listops if task == "listops" else pathfinder
                sizes = limited(module.ROWS, rows, eval_rows)
                make = partial(module.generate, sizes, seed=seed, processes=processes)
                return {"generated": sizes}, make
            case "text":
                return {"hub": text.HUB}, partial(text.download, seed)
            case "image":
                return {"hub": image.HUB}, partial(image.download, seed)
        raise ValueError(f"The task {task} needs `--data-dir`: the folder of {NEEDED[task]}.")
    match task:
        case "listops":
            files = need_files(data_dir, listops.FILES.values(), GENERATED)
            make = partial(listops.read, files)
        case "pathfinder":
            files = pathfinder_files.source(data_dir)
            make = partial(pathfinder_files.read, files)
        case "retrieval":
            files = retrieval.source(data_dir)
            make = partial(retrieval.read, files)
        case "image":
            files = image.source(data_dir)
            make = partial(image.read, files, seed)
        case "text":
            files = text.source(data_dir)
            make = partial(text.read, files, seed)
        case _:
            files = text.source(data_dir)
            make = partial(retrieval.same_movie, files, seed=seed)
    return {"files": fingerprints(files)}, make


GENERATED = "without --data-dir the rows are generated"
NEEDED = {
    "retrieval": "the benchmark's new_aan_pairs.*.tsv; or take the task imdb-same-movie",
    "imdb-same-movie": "imdb/train.jsonl and test.jsonl with text, label and movie",
}


def limited(rows: dict[str, int], train: int | None, others: int | None) -> dict[str, int]:
    """Returns how many rows of each split are made, at most as many as are asked for."""
    limits = {"train": train, "validation": others, "test": others}
    return {split: min(count, limits[split] or count) for split, count in rows.items()}
