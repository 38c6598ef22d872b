"""The tasks: the hyper-parameters of each in the code of the Nyströmformer paper."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Holds the numbers of one task as the paper's code trains it.

    Args:
        classes: How many there are.
        vocabulary: How many tokens there are: bytes, grey values, or the words of ListOps.
        max_length: Tokens of a document at most.
        batch_size, steps, warmup_steps: Of the training; the rate rises, then falls to 0 in a line.
        documents: 2 in a task of pairs.
        learning_rate: At its highest.
    """

    classes: int
    vocabulary: int
    max_length: int
    batch_size: int
    steps: int
    warmup_steps: int
    documents: int = 1
    learning_rate: float = 1e-4


PAIRS = Task(2, 256, 4000, batch_size=32, steps=30_000, warmup_steps=800, documents=2)
TASKS = {
    "listops": Task(10, 15, 2000, batch_size=32, steps=5_000, warmup_steps=1_000),
    "text": Task(2, 256, 4096, batch_size=32, steps=20_000, warmup_steps=8_000),
    "retrieval": PAIRS,
    "imdb-same-movie": PAIRS,
    "image": Task(10, 256, 1024, batch_size=256, steps=35_000, warmup_steps=175),
    "pathfinder": Task(2, 256, 1024, batch_size=256, steps=62_400, warmup_steps=312),
}
