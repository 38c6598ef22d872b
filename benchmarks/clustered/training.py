"""Shows what a training with clustered attention gives, also from scratch.

    python -m benchmarks clustered.training [--part distillation | scratch]

Takes twenty minutes and more on two cores.

distillation: all six layers of all-MiniLM-L6-v2 swapped, then 40 updates (two passages each) of the
loss of `recipes.distill` against its exact twin, at a rate of 2e-5, on passages of IMDB (unsup),
Brown and news; kinds of text that were in none of it are reported too. scratch: the demo's
classifier of source code from the same initial weights under exact, Nyström and clustered
attention. Writes results/clustered_distillation.csv and clustered_scratch.csv after every case, and
keeps the rows that they have. encoders/minilm.py says where weights and texts come from.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.clustered import swapped
from benchmarks.clustered.methods import BUDGETS, clustered
from benchmarks.encoders.distillation import TRAINED_ON
from benchmarks.encoders.minilm import DATA, minilm
from nystromer import NystromAttention, clustered_attention
from nystromer.backends.eager import convolution
from nystromer.hf.calibration.fidelity import last_hidden, measure
from nystromer.hf.conversion.interface import register
from nystromer.recipes.convert.distill import (
    Distillation,
    Passages,
    Settings,
    optimizer,
    training_arguments,
)
from nystromer.recipes.demo.data import Task, stdlib_task
from nystromer.recipes.demo.model import Classifier, ExactAttention
from nystromer.recipes.demo.settings import Settings as Sizes
from nystromer.recipes.demo.twins import train_twin
from nystromer.recipes.inputs.text import passages, read_text

BUDGET = BUDGETS[128]
NAME = "clustered_benchmark"


@dataclass(frozen=True)
class Distilled:
    """A training at a rate; at a rate of 0 there is none."""

    rate: float
    steps: int


def distilled(case: Distilled) -> dict[str, Any]:
    """Trains, and returns cosine and token error on every kind of text."""
    teacher, _ = minilm()
    student = copy.deepcopy(teacher).train()
    register(NAME, swapped.called_by_layers(partial(clustered, budget=BUDGET)))
    student.set_attn_implementation(NAME)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if case.rate:
        train(teacher, student, Settings(case.steps, 2, case.rate))
    found: dict[str, Any] = {}
    for kind, ids in texts().items():
        if kind != "train":
            batches = [{"input_ids": x} for x in ids.split(4)]
            exact = [last_hidden(teacher.eval(), x) for x in batches]
            x = measure([last_hidden(student.eval(), batch) for batch in batches], exact)
            figures = (x.cosine, x.worst_cosine, x.error)
            found |= {
                f"{kind} {n}": y for n, y in zip(("", "worst", "token"), figures, strict=True)
            }
    return {name.strip(): value for name, value in found.items()}


def train(teacher: Any, student: Any, settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, settings)
        arguments.save_strategy = arguments.eval_strategy = "no"
        arguments.load_best_model_at_end = False
        Distillation(
            teacher.eval().requires_grad_(False),
            student,
            arguments,
            train_dataset=Passages(texts()["train"]),
            optimizers=(optimizer(student, settings), None),
        ).train()


@cache
def texts() -> dict[str, Tensor]:
    """Returns passages of 512 tokens to train on, held out of the same kinds, and of new kinds."""
    _, tokenizer = minilm()
    mixed = passages(tokenizer, [read_text(DATA / file) for file in TRAINED_ON], 256)
    return {
        "train": mixed[12:],
        "held out": mixed[:12],
        "Python's help": swapped.passages("Python's help", 512, 12),
        "source code": swapped.passages("source code", 512, 12),
    }


@dataclass(frozen=True)
class Scratch:
    """A classifier that learns from nothing with one of ATTENTIONS."""

    attention: str
    seed: int


class ClusteredAttention(NystromAttention):
    """The parameters of NystromAttention, its convolution included, around clustered attention."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self._heads(proj, x) for proj in (self.q_proj, self.k_proj, self.v_proj))
        names = ("num_query_clusters", "num_key_clusters", "num_exact_keys")
        output = clustered_attention(q, k, v, **dict(zip(names, BUDGET, strict=True)))
        output = output + convolution(v, self.conv_weight)
        return self.dropout(self.out_proj(output.transpose(1, 2).flatten(2)))


ATTENTIONS = {"exact": ExactAttention, "Nyström": NystromAttention, "ours": ClusteredAttention}
SIZES = Sizes(length=1024, max_windows=100, num_heads=2)


@cache
def task(seed: int) -> Task:
    return stdlib_task(length=SIZES.length, max_windows=SIZES.max_windows, seed=seed)


def scratch(case: Scratch) -> dict[str, Any]:
    """Trains a classifier of bytes and returns what it does on held-out files.

    Its first weights and its batches are those of the seed, the same for all attentions.
    """
    data = task(case.seed)
    torch.manual_seed(case.seed)
    model = Classifier(ATTENTIONS[case.attention], len(data.packages), SIZES)
    twin = train_twin(case.attention, model, data, SIZES, case.seed)
    return {
        "accuracy": twin.accuracy,
        "macro_f1": twin.macro_f1,
        "majority": data.majority_accuracy(),
        "held_out": len(data.held_out),
        "steps": twin.steps,
    }


PARTS: dict[str, tuple[list[Any], Any]] = {
    "distillation": ([Distilled(rate, 40) for rate in (0.0, 2e-5)], distilled),
    "scratch": ([Scratch(name, seed) for seed in (0, 1, 2) for name in ATTENTIONS], scratch),
}


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--part", choices=PARTS, help="both if left out")
    arguments = parser.parse_args()
    for part in [arguments.part] if arguments.part else PARTS:
        cases, measured = PARTS[part]
        path = common.RESULTS / f"clustered_{part}.csv"
        for row in common.complete(path, cases, measured):
            print(*list(row.values())[:-3], sep=", ")
