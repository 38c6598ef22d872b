"""A pretraining of seconds, for tests; as a program it is killed on the way, or one of several.

python small_pretraining.py FILE CHECKPOINT OUTPUT STEPS [KILLED_AT]
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from nystromer.recipes.pretrain import pretrain
from nystromer.recipes.pretrain.corpus import Corpus
from nystromer.recipes.pretrain.settings import Settings
from nystromer.recipes.runs import order, trainer


def small_pretraining(file, checkpoint, output, steps, resume=False):
    settings = Settings(
        Corpus((Path(file),)),
        checkpoint=str(checkpoint),
        held_out=0.3,
        sequence_length=32,
        steps=steps,
        evaluations=int(os.environ.get("EVALUATIONS", steps // 4)),
        batch_size=int(os.environ.get("BATCH_SIZE", "8")),
        device_batch=int(os.environ.get("DEVICE_BATCH", "4")),
        sequence_parallel=int(os.environ.get("SEQUENCE_PARALLEL", "1")),
        learning_rate=1e-2,
    )
    return pretrain(settings, Path(output), resume=resume)


def kill_at(step):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    order.DrawAnew.on_step_end = on_step_end


def shard_on_cpus():
    """accelerate has FSDP for GPUs only: without this it runs DDP, and does not say so."""
    init = AcceleratorState.__init__

    def extended(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = extended


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.bfloat16_is_fast = lambda: False  # its rounding hides what is compared
    if os.environ.get("SHARD_ON_CPUS"):
        shard_on_cpus()
    if len(sys.argv) > 5:
        kill_at(int(sys.argv[5]))
    small_pretraining(*sys.argv[1:4], int(sys.argv[4]), resume="RESUME" in os.environ)
