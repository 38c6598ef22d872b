"""Several processes that read each row together: `--sequence-parallel`.

With S processes a sequence, processes S g ... S g + S - 1 are group g. All of a group get the same
row, because every row stands S times in the order; each group has its own rows, as a process of its
own has without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from nystromer.checks import check_positive
from nystromer.distributed import sequence_parallel


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_shared(size: int, device_batch: int | None) -> None:
    """Checks that all processes can be cut into groups of `size`.

    Raises:
        ValueError: If they cannot, or a process shall take several rows at a time.
    """
    check_positive("sequence_parallel", size)
    if world_size() % size:
        raise ValueError(
            f"`--sequence-parallel` must divide the number of processes, {world_size()}, got "
            f"{size}; start with torchrun --nproc-per-node {size}, or a multiple of it."
        )
    if size > 1 and device_batch not in (None, 1):
        raise ValueError(
            f"`--device-batch` must be 1 with --sequence-parallel {size}, whose processes read one "
            f"row together, got {device_batch}; leave it out."
        )


def share_sequences(model: nn.Module, size: int) -> None:
    """Lets groups of `size` processes read each row together.

    Raises:
        ValueError: As `sequence_parallel`.
    """
    if size == 1:
        return
    groups = [dist.new_group(range(i, i + size)) for i in range(0, world_size(), size)]
    sequence_parallel(model, group=groups[dist.get_rank() // size])


def without_processes(settings: Any) -> dict[str, Any]:
    """The settings that a result depends on: a run goes on with another number of processes."""
    return {k: v for k, v in asdict(settings).items() if k != "sequence_parallel"}


class Repeated(Dataset[Any]):
    """Rows, each `times` times in a row."""

    def __init__(self, rows: Sequence[Any], times: int) -> None:
        self.rows, self.times = rows, times

    def __len__(self) -> int:
        return len(self.rows) * self.times

    def __getitem__(self, index: int) -> Any:
        return self.rows[index // self.times]
