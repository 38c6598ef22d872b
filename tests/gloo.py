"""Runs a function of a module in several gloo processes, and gives back what each returned."""

import importlib.util
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TESTS = Path(__file__).parent


def start(module, function, size, folder, time_out=60):
    """Starts `size` processes that call a function of a module, given its path."""
    command = [sys.executable, __file__, module, function, folder, str(size), str(time_out)]
    return [
        subprocess.Popen([*map(str, command), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(size)
    ]


def run(module, function, size, folder, time_out=60):
    """What the function returned in each process; their messages, if one failed."""
    processes = start(module, function, size, folder, time_out)
    messages = [process.communicate(timeout=600)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(messages)
    return [torch.load(folder / f"{function}{rank}.pt") for rank in range(size)]


def main(module, function, folder, size, time_out, rank):
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import conftest  # noqa: F401, one thread, and Triton's interpreter

    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{function}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=time_out),
    )
    spec = importlib.util.spec_from_file_location("called", module)
    called = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(called)
    torch.save(getattr(called, function)(), f"{folder}/{function}{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
