"""What a training costs: the time of its steps, and the memory of one."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class StopWatch(TrainerCallback):
    """Takes the seconds of every training step, and accuracy against the seconds spent so far."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.history: list[tuple[float, float]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.history.append((sum(self.seconds), kwargs["metrics"]["eval_accuracy"]))


def step_peak_bytes(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Returns the most memory that tensors hold in a forward and backward, beyond the model.

    Counted by torch's profiler, allocation by allocation, on a CPU: unlike the memory of the
    process it does not depend on what ran before.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler announces itself
    activities = [torch.profiler.ProfilerActivity.CPU]
    model = copy.deepcopy(model).cpu()
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        model(**batch)["loss"].backward()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [e["args"] for e in events if e.get("name") == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return max(change["Total Allocated"] for change in changes) - before
