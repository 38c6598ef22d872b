"""A run: one training in one folder that says what was done and can go on where it stopped.

run.lock           while a process works on it: the folder is that process's alone
run.json           the exact command, settings, fingerprints of the inputs, versions, device
checkpoint-STEP/   while it trains, the last two; each whole, which its manifest.json shows
log.jsonl, curves.png
model.safetensors, config.json, the tokenizer
metrics.json       last of all: with it the run is finished
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nystromer.recipes.files.errors import said_when_unwritable
from nystromer.recipes.files.outputs import folders, new_file
from nystromer.recipes.runs.checkpoints import PARTIAL, RECORD, checkpoints, discard, last_whole
from nystromer.recipes.runs.claim import claimed, clear_partial_files, is_first, is_something
from nystromer.recipes.runs.curves import CURVES, LOG, write_curves
from nystromer.recipes.runs.trainer import RunTrainer

METRICS = "metrics.json"


@contextmanager
def open_run(folder: Path, settings: Mapping[str, Any], resume: bool = False) -> Iterator[Run]:
    """Gives the run in a folder, which belongs to this process alone until it ends.

    Args:
        folder: New or empty, or, with `resume`, that of the run to go on with.
        settings: All options that the result depends on, as JSON holds them (others as text).
        resume: Go on with the run in the folder; begin it if the folder is new or empty.

    Raises:
        ValueError: If the folder holds anything else, a run with other settings, or is that of a
            run which is still going on.
    """
    run = Run(folder, as_json(settings))
    run.check_folder(resume)  # before anything is written there
    with claimed(folder):
        run.check_folder(resume)  # another process may have been faster
        yield run


@dataclass
class Run:
    """Does the work of a run in its folder: `begin`, then `train`, then `finish`.

    One of several trainings is a `part` of it for each, and then `close`.
    """

    folder: Path
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    whole: Run | None = None

    def check_folder(self, resume: bool) -> None:
        """Checks that a run can begin or go on there.

        Raises:
            ValueError: As `open_run`.
        """
        with said_when_unwritable(self.folder):
            if not self.folder.is_symlink() and not self.folder.exists():
                return
            if self.folder.is_dir() and not any(map(is_something, self.folder.iterdir())):
                return
        record = self.record()
        if record is None or not resume:
            what = "something else" if record is None else "a run; add --resume to go on with it"
            raise ValueError(
                f"`--output` must be a new folder, got {self.folder}, which holds {what}."
            )
        self.check_same(record["settings"], self.settings)

    def begin(self, inputs: Mapping[str, str]) -> dict[str, Any] | None:
        """Takes note of what the run is made from, and returns the metrics if it is finished.

        Args:
            inputs: {what it is to the user: its fingerprint} of data, text and models.

        Raises:
            ValueError: If the run began with other inputs; it names the first.
        """
        self.inputs = dict(inputs)
        if (record := self.record()) is None:
            return None
        self.check_same(record.get("inputs", {}), self.inputs)
        metrics = read_json(self.folder / METRICS)
        if metrics is not None and is_first():
            self._clear()  # what a kill just after the metrics left
        return metrics

    def train(self, trainer: RunTrainer) -> None:
        """Trains from the last whole checkpoint, if there is one.

        A run that is refused before its first checkpoint leaves nothing behind.

        Raises:
            ValueError: If no checkpoint is whole, the rows do not suit the model, or the disk is
                full.
            FloatingPointError: If a loss or a weight is not finite.
        """
        checkpoint = None
        new = trainer.args.should_save and self.record() is None
        begun = [self] if new else []  # the runs that begin here
        if new and self.whole is not None and self.whole.record() is None:
            begun.append(self.whole)
        if trainer.args.should_save:
            with said_when_unwritable(self.folder):
                shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
                for run in reversed(begun):
                    run._write_record(trainer)
                checkpoint = last_whole(self.folder)
        trainer.accelerator.wait_for_everyone()
        checkpoint = checkpoint or next(reversed(checkpoints(self.folder)), None)
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except Exception:
            if new and not checkpoints(self.folder):
                shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
                for run in begun:
                    for name in (RECORD, LOG, CURVES):
                        (run.folder / name).unlink(missing_ok=True)
            raise

    @contextmanager
    def part(self, name: str, settings: Mapping[str, Any]) -> Iterator[Run]:
        """Gives the run of one of several trainings, which begins or goes on in a folder of it.

        Args:
            name: Of the folder.
            settings: What sets this training apart from the others.

        Raises:
            ValueError: If the folder holds anything else.
        """
        folder = self.folder / name
        run = Run(folder, as_json({**self.settings, **settings}), whole=self)
        run.check_folder(resume=True)
        if not is_first():  # which may be faster than the first, who has not looked around yet
            yield run
            return
        with folders(folder):
            clear_partial_files(folder)
            yield run

    def close(self, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of a run of several trainings, which ends it."""
        write_json(self.folder / METRICS, metrics)

    def finish(self, trainer: RunTrainer, metrics: Mapping[str, Any]) -> None:
        """Writes model, tokenizer, curves and metrics, then drops the checkpoints.

        Raises:
            ValueError: If the disk is full.
            FloatingPointError: If a weight is not finite.
        """
        trainer.check_finite("saving")
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers shards
        if trainer.args.should_save:
            with said_when_unwritable(self.folder):
                trainer._save(str(self.folder), state_dict=weights)
                (self.folder / "training_args.bin").unlink()  # a pickle; run.json says it all
                write_curves(trainer.state.log_history, self.folder)
            write_json(self.folder / METRICS, metrics)
            self._clear()
        trainer.accelerator.wait_for_everyone()

    def record(self) -> dict[str, Any] | None:
        """Returns what run.json says, None if there is no such file.

        Raises:
            ValueError: If it is not that of a run.
        """
        record = read_json(self.folder / RECORD)
        if record is not None and not isinstance(record.get("settings"), dict):
            raise ValueError(f"{self.folder / RECORD} is not that of a run; name a new --output.")
        return record

    def check_same(self, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Checks that a run goes on as it began.

        Raises:
            ValueError: If something differs; it names the first.
        """
        for name in {**stored, **given}:
            if stored.get(name) != given.get(name):
                raise ValueError(
                    f"A run goes on with the same settings and inputs, got {name} = "
                    f"{given.get(name)!r} where the run in {self.folder} has "
                    f"{stored.get(name)!r}; bring that back, or name a new --output."
                )

    def _clear(self) -> None:
        with said_when_unwritable(self.folder):
            for path in checkpoints(self.folder):
                discard(path)
            shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)

    def _write_record(self, trainer: RunTrainer) -> None:
        model: Any = trainer.model
        record = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "settings": self.settings,
            "inputs": self.inputs,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("nystromer", "torch", "transformers")},
            "device": device_name(),
            "processes": trainer.args.world_size,
            "bfloat16": trainer.args.bf16,
            "parameters": sum(p.numel() for p in model.parameters()),
            "started": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        }
        write_json(self.folder / RECORD, record)


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings as JSON brings them back."""
    return json.loads(json.dumps(dict(settings), default=str))


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a file of a run, None if there is no such file.

    Raises:
        ValueError: If it cannot be read, or is cut.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not that of a run, or damaged ({error}).") from error
    return found


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Writes a new file, whole or not at all; NaN, which is no JSON, is refused."""
    with new_file(path, ".json") as partial:
        partial.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def device_name() -> str:
    """Returns the name of the GPU, or the kind of CPU and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
