"""A run of seconds, for tests; as a program it is killed, or finds the disk full, on the way.

python small_run.py FOLDER step | checkpoint | disk
"""

import os
import resource
import signal
import sys
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score
from transformers import DataCollatorWithPadding, TrainerCallback, set_seed

from nystromer.hf import NystromformerForSequenceClassification
from nystromer.recipes.inputs.presets import preset
from nystromer.recipes.inputs.tokenizers import load_tokenizer
from nystromer.recipes.runs.run import open_run
from nystromer.recipes.runs.trainer import RunTrainer, training_arguments

SETTINGS = {"epochs": 2, "file": Path("a.txt")}
INPUTS = {"the letters": "1234"}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_landmarks": 4, "num_labels": 2}


def rows(count=40):
    """Letters of which there are more a or more b; their lengths differ."""
    draw = torch.Generator().manual_seed(0)
    letters = [torch.randint(97, 99, (n,), generator=draw) for n in range(10, 10 + count)]
    return [{"input_ids": x.tolist(), "labels": int(x.float().mean() > 97.5)} for x in letters]


class Killed(RunTrainer):
    """By itself, halfway through its second checkpoint."""

    def _save_rng_state(self, output_dir):
        if self.state.global_step > 5:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


class KilledAtStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 14:
            os.kill(os.getpid(), signal.SIGKILL)


def small_trainer(folder, trainer_class=RunTrainer, token_dropout=0.1, **options):
    set_seed(0)
    tokenizer = load_tokenizer("bytes")
    model = NystromformerForSequenceClassification(
        preset("tiny", tokenizer, max_length=64, **SIZES)
    )
    arguments = {
        "num_train_epochs": 2,  # of ten steps
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "eval_steps": 5,
        "save_steps": 4,
        "logging_steps": 2,
    }
    data = rows()
    return trainer_class(
        model,
        training_arguments(folder, **{**arguments, **options}),
        train_dataset=data,
        eval_dataset=data[::3],
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        processing_class=tokenizer,
        compute_metrics=lambda x: {
            "accuracy": accuracy_score(x.label_ids, x.predictions.argmax(1))
        },
        token_dropout=token_dropout,
        lengths=[len(row["input_ids"]) for row in data],
    )


def small_run(folder, trainer_class=RunTrainer, resume=False, callbacks=(), **options):
    with open_run(folder, SETTINGS, resume) as run:
        if (done := run.begin(INPUTS)) is not None:
            return done
        trainer = small_trainer(folder, trainer_class, **options)
        for callback in callbacks:
            trainer.add_callback(callback)
        run.train(trainer)
        found = trainer.evaluate()
        metrics = {name: found[name] for name in ("eval_loss", "eval_accuracy")}
        run.finish(trainer, metrics)
        return metrics


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, how = Path(sys.argv[1]), sys.argv[2]
    if how == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    small_run(
        folder,
        Killed if how == "checkpoint" else RunTrainer,
        callbacks=[KilledAtStep()] if how == "step" else (),
    )
