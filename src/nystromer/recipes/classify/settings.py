"""The settings of a classifier's training, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nystromer.recipes.classify.tasks import Columns
from nystromer.recipes.inputs.options import check_counts, check_rate
from nystromer.recipes.inputs.presets import check_preset

NEW: dict[str, dict[str, Any]] = {  # of models from scratch
    "tiny": {"batch_size": 8, "learning_rate": 1e-3, "token_dropout": 0.15},
    "bert-small": {"batch_size": 32, "learning_rate": 3e-4, "token_dropout": 0.0},
    "bert-base": {"batch_size": 32, "learning_rate": 1e-4, "token_dropout": 0.0},
}


MOST_EPOCHS = 100_000  # more would never end
FINE_TUNING = {"batch_size": 32, "learning_rate": 3e-5, "token_dropout": 0.0}  # the paper's


@dataclass(frozen=True)
class Settings:
    """Holds the settings of a training; `resolved` fills in what is None.

    Args:
        task: One of `nystromer.recipes.classify.tasks.TASKS`, instead of own files.
        data_dir: Where its files are; None fetches them from the Hub.
        train_file, eval_file, test_file: Own files. A tenth of the training rows is held out where
            there is no eval_file; the test_file is looked at once, at the end.
        text_column, text_pair_column, label_column: Theirs.
        preset: Size of a new model; "tiny" if there is no `model` either.
        model: Folder or Hub name of one to fine-tune.
        attention: "nystrom" or "exact"; None is nystrom, or what a Nyström model has.
        tokenizer: bytes, dna, a name or a folder; None is the model's own, bytes for a new one.
        max_length: Tokens at which a text is cut; None is 2,048, or all that the model can read.
        num_landmarks: M; None is 64, or what a Nyström model has.
        epochs, batch_size, learning_rate: None is the paper's for a `model` (AdamW 3e-5, 32 rows an
            update, 4 epochs), and higher for a new one.
        token_dropout: Share of the tokens of a training text that [MASK] stands in for, against
            learning a small file by heart; None is 0.15 for "tiny", else 0.
        later_starts: Against the same: a training text begins anew in every epoch, at a random
            token of this first part of it; None is a third where "tiny" reads single texts as
            bytes, else 0.
        device_batch: Rows that one process takes at a time; None is all of its share.
        sequence_parallel: S, processes that read each row together, one row at a time.
        limit: Rows of every split, for a try.
    """

    task: str | None = None
    data_dir: Path | None = None
    train_file: Path | None = None
    eval_file: Path | None = None
    test_file: Path | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    preset: str | None = None
    model: str | None = None
    attention: str | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    num_landmarks: int | None = None
    epochs: int = 4
    batch_size: int | None = None
    device_batch: int | None = None
    sequence_parallel: int = 1
    learning_rate: float | None = None
    token_dropout: float | None = None
    later_starts: float | None = None
    seed: int = 0
    skip_bad_lines: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "epochs", "batch_size", "device_batch", "max_length", "num_landmarks")
        check_counts(self, "limit")
        if self.epochs > MOST_EPOCHS:
            raise ValueError(f"`epochs` must be at most {MOST_EPOCHS:,}, got {self.epochs:,}.")
        check_rate(self.learning_rate)
        for name in ("token_dropout", "later_starts"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(
                    f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}."
                )
        if (self.task is None) == (self.train_file is None):
            got = "both" if self.task else "neither"
            raise ValueError(f"A training needs a TASK or a --train-file, got {got}; give one.")
        others = ("data_dir",) if self.task is None else ("eval_file", "test_file")
        for name in others:
            if getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                what = "a --train-file" if self.task is None else f"the TASK {self.task}"
                raise ValueError(f"`{option}` is of no use beside {what}; leave one out.")
        if self.preset is not None and self.model is not None:
            raise ValueError("`--preset` is a new model, got a --model too; leave one out.")

    def resolved(self) -> Settings:
        """Returns the settings with rates and sizes in place of None."""
        usual: dict[str, Any] = FINE_TUNING
        if self.model is None:
            name = check_preset(self.preset or "tiny")
            usual = {"preset": name, "tokenizer": "bytes", "max_length": 2048, **NEW[name]}
        return replace(self, **{k: v for k, v in usual.items() if getattr(self, k) is None})

    @property
    def columns(self) -> Columns:
        """Returns the names of the columns of the user's own files."""
        return Columns(self.text_column, self.label_column, self.text_pair_column)
