"""A run: one training in one folder that says what was done and can go on where it stopped.

run.json           the exact command, settings, versions, device
checkpoint-STEP/   while it trains; whole or not there
log.jsonl, curves.png
model.safetensors, config.json, the tokenizer
metrics.json       last of all: with it the run is finished
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from nystromer.recipes.shared.curves import write_curves
from nystromer.recipes.shared.trainer import PARTIAL, RunTrainer, said_when_unwritable

RECORD, METRICS = "run.json", "metrics.json"


@dataclass(frozen=True)
class Run:
    """
    Args:
        folder: New or empty, or, with `resume`, that of the run to go on with.
        settings: Everything that the result depends on, as JSON holds it (other values as text).
        resume: Go on with the run in the folder; begin it if the folder is new or empty.

    Raises:
        ValueError: If the folder holds anything else, or a run with other settings.
    """

    folder: Path
    settings: Mapping[str, Any]
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return
        stored = self._stored()
        if stored is None or not self.resume:
            what = "something else" if stored is None else "a run; add --resume to go on with it"
            raise ValueError(
                f"`--output` must be a new folder, got {self.folder}, which holds {what}."
            )
        check_same(stored, as_json(self.settings), self.folder)

    def finished(self) -> dict[str, Any] | None:
        """The metrics of a run that is finished, None of one that is not."""
        path = self.folder / METRICS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def train(self, trainer: RunTrainer) -> None:
        """Claims the folder and trains from its last checkpoint, if there is one.

        Raises:
            ValueError: If another run has claimed it in the meantime, or the disk is full.
        """
        if trainer.args.should_save:
            with said_when_unwritable(self.folder):
                shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
                if self._stored() is None:
                    self._claim(trainer)
        trainer.accelerator.wait_for_everyone()
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(self.folder)))

    def finish(self, trainer: RunTrainer, metrics: Mapping[str, Any]) -> None:
        """Writes model, tokenizer, curves and metrics, then drops the checkpoints.

        Raises:
            ValueError: If the disk is full.
        """
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers shards
        if trainer.args.should_save:
            with said_when_unwritable(self.folder):
                trainer._save(str(self.folder), state_dict=weights)
                (self.folder / "training_args.bin").unlink()  # a pickle; run.json says it all
                write_curves(trainer.state.log_history, self.folder)
                write_whole(self.folder / METRICS, json.dumps(metrics, indent=2) + "\n")
            for path in self.folder.glob("checkpoint-*"):
                shutil.rmtree(path)
        trainer.accelerator.wait_for_everyone()

    def _stored(self) -> dict[str, Any] | None:
        """The settings in run.json, None if there is no such file."""
        try:
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))["settings"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.folder / RECORD} is not that of a run ({error!r}); name a new --output."
            ) from error

    def _claim(self, trainer: RunTrainer) -> None:
        model: Any = trainer.model
        record = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "settings": as_json(self.settings),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("nystromer", "torch", "transformers")},
            "device": device_name(),
            "processes": trainer.args.world_size,
            "bfloat16": trainer.args.bf16,
            "parameters": sum(p.numel() for p in model.parameters()),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / RECORD).open("x", encoding="utf-8") as file:  # by one run alone
            file.write(json.dumps(record, indent=2) + "\n")


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    """
    Raises:
        ValueError: If a setting differs; it names the first.
    """
    for name in {**stored, **given}:
        if stored.get(name) != given.get(name):
            raise ValueError(
                f"`--resume` goes on with the same settings, got {name} = {given.get(name)!r} "
                f"where the run in {folder} has {stored.get(name)!r}; write that, or name a new "
                "--output."
            )


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(settings), default=str))


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def write_whole(path: Path, text: str) -> None:
    """Replaces the file at once, or leaves it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
