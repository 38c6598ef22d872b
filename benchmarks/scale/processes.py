"""Calls a function in several gloo processes of this machine, and counts what they exchange."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


def in_processes(size: int, threads: int, function: Callable[..., Any], *arguments: object) -> list:
    """Returns what the function gave in each of `size` new processes, in the order of ranks.

    Args:
        threads: Of each process.
        function: Called as function(*arguments) with torch.distributed started.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size, get_context("spawn")) as pool,
    ):
        parts = [
            pool.submit(_called, rank, size, threads, folder, function, arguments)
            for rank in range(size)
        ]
        return [part.result() for part in parts]


def _called(
    rank: int,
    size: int,
    threads: int,
    folder: str,
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> Any:
    torch.set_num_threads(threads)
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()


class CountBytes(TorchDispatchMode):
    """Adds up the bytes that this process hands to collectives, in `total`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("c10d::"):
            handed = args[0] if name.startswith("c10d::allreduce_") else args[1]
            self.total += sum(x.nbytes for x in ([handed] if torch.is_tensor(handed) else handed))
        return func(*args, **(kwargs or {}))
