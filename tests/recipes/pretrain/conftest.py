import random

import datasets
import pytest

from nystromer.recipes.inputs.tokenizers import load_tokenizer


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of its own for every test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def letters():
    return load_tokenizer("bytes")


def documents(count, sentences=12, seed=0):
    draw = random.Random(seed)
    return [
        " ".join(f"w{draw.randrange(100)} w{draw.randrange(9)}." for _ in range(sentences))
        for _ in range(count)
    ]


@pytest.fixture
def file(tmp_path):
    """60 documents of twelve sentences, as text."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents(60)))
    return path
