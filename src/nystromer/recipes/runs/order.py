"""The order of the training rows: it depends on the seed and the epoch alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback


class EpochDataset(Dataset[Any]):
    """Is a data set whose rows are others in every epoch; `epoch` says which it is."""

    epoch: int


class DrawAnew(TrainerCallback):
    """Tells the training rows which epoch it is, before workers are started."""

    def __init__(self, rows: EpochDataset) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rows.epoch = int(state.epoch)


class EpochSampler(Sampler[int]):
    """Gives every row once in an order that depends on the seed and the epoch alone; or `times`
    times in a row, for as many processes that read it together.

    The epoch is the trainer's own: accelerate's `set_epoch` does not reach the sampler of a run
    that several processes resume in the middle of an epoch.
    """

    def __init__(
        self, trainer: Trainer, count: int, lengths: Sequence[int] | None, times: int = 1
    ) -> None:
        self.trainer, self.count, self.lengths, self.times = trainer, count, lengths, times

    def __len__(self) -> int:
        return self.count * self.times

    def __iter__(self) -> Iterator[int]:
        args = self.trainer.args
        draw = random.Random(f"{args.seed}, {int(self.trainer.state.epoch or 0)}")
        order = draw.sample(range(self.count), self.count)
        if self.lengths is not None:
            rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            order = grouped(order, self.lengths, rows // self.times, draw)
        return (row for row in order for _ in range(self.times))


def grouped(
    order: Sequence[int], lengths: Sequence[int], batch: int, draw: random.Random, pool: int = 16
) -> list[int]:
    """Returns the same rows with rows of like length together: `pool` batches at a time are sorted
    and cut into batches, then all batches are shuffled, but for the last, which may be smaller."""
    batches: list[list[int]] = []
    for start in range(0, len(order), pool * batch):
        rows = sorted(order[start : start + pool * batch], key=lambda i: lengths[i])
        batches += [rows[i : i + batch] for i in range(0, len(rows), batch)]
    last = [batches.pop()] if batches and len(batches[-1]) < batch else []
    draw.shuffle(batches)
    return [row for rows in batches + last for row in rows]
