"""Data of every task, a few rows each."""

import json

import numpy as np
import pytest

from nystromer.recipes.lra import retrieval


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def data_dirs(tmp_path_factory):
    """By task; None for those that are generated."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "imdb").mkdir()
    (folder / "cifar10_gray").mkdir()
    for split in ("train", "test"):
        rows = [
            {"text": f"{i} seen " * (20 + i), "label": i // 50 % 2, "movie": f"m{i % 50}"}
            for i in range(200)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "imdb" / f"{split}.jsonl").write_text(text)
        pixels = np.random.default_rng(0).integers(256, size=(100, 32, 32), dtype=np.uint8)
        np.savez(folder / "cifar10_gray" / f"{split}.npz", x=pixels, y=np.arange(100) % 10)
    for name in retrieval.FILES.values():
        lines = [f"{i % 2}.0\ta\tb\t{'cited ' * (30 + i)}\t{'citing ' * 40}\n" for i in range(40)]
        (folder / name).write_text("".join(lines))
    tasks = dict.fromkeys(("text", "image", "retrieval", "imdb-same-movie"), folder)
    return {**tasks, "listops": None, "pathfinder": None}
