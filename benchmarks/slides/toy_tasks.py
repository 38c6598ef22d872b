"""Shows how good every map is where the right one is known: bags of handwritten digits.

    python -m benchmarks slides.toy_tasks

Takes ten minutes.

The tasks of xMIL (Hense et al. 2024, arXiv:2406.04280) on the 8 x 8 digits that scikit-learn ships,
in bags of 50, and the bags of Ilse et al. 2018. A task knows of every digit whether it speaks for
the class of its bag (+1), against it (-1) or not at all. Scores of a map: `auc`, the mean of how
well it puts the +1 above all others and the -1 below all others; `ap`, the same with average
precision (xMIL's AUPRC-2); `area`, between the curves of patch flipping. A random map has 0.5 of
the first and 0 of the last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from nystromer.mil.maps import METHODS, explain, for_class
from nystromer.mil.maps.faithfulness import flip, random_map
from nystromer.mil.models import Model, build_model

PATCHES, BATCH, UPDATES, TEST_BAGS = 50, 32, 600, 40
MODELS = {
    "transmil": {"embed_dim": 64, "num_heads": 4, "num_landmarks": 16, "conv_kernel_size": 9},
    "abmil": {"embed_dim": 64, "attention_dim": 32},
}
Digits = list[int]


@dataclass(frozen=True)
class Task:
    """
    Args:
        classes: How many a bag can have.
        draw: Draws the digits of a bag that matter, without fillers.
        fillers: Digits that fill the bag up.
        label: The class of digits.
        sign: Of a digit in a bag of these digits: whether it speaks for the class, 1, -1 or 0.
    """

    classes: int
    draw: Callable[[], set[int]]
    fillers: range
    label: Callable[[set[int]], int]
    sign: Callable[[int, set[int], int], int]


def some_of(digits: Digits, share: float = 0.5) -> set[int]:
    return {digit for digit in digits if random.random() < share}


def pairs(digits: set[int]) -> set[int]:
    """The digits of 0 to 4 that stand beside a neighbour."""
    low = {digit for digit in digits if digit < 5}
    return {digit for digit in low if digit - 1 in low or digit + 1 in low}


def four_bags(digit: int, _: set[int], label: int) -> int:
    if digit < 8 or label == 3:
        return int(digit >= 8)
    return 1 if digit == label + 7 else -1


def pos_neg(digit: int, _: set[int], label: int) -> int:
    if digit < 4:
        return 0
    return 1 if (digit % 2 == 0) == (label == 1) else -1


TASKS = {
    "one digit": Task(
        2,
        lambda: some_of([9]),
        range(9),
        lambda digits: int(9 in digits),
        lambda digit, _, label: (1 if label else -1) * (digit == 9),
    ),
    "4-bags": Task(
        4, lambda: some_of([8, 9]), range(8), lambda x: (8 in x) + 2 * (9 in x), four_bags
    ),
    "pos-neg": Task(
        2,
        lambda: some_of([4, 5, 6, 7, 8, 9]),
        range(4),
        lambda x: int(len(x & {4, 6, 8}) > len(x & {5, 7, 9})),
        pos_neg,
    ),
    "adjacent pairs": Task(
        2,
        lambda: some_of([0, 1, 2, 3, 4], 0.4),
        range(5, 10),
        lambda x: int(bool(pairs(x))),
        lambda digit, x, label: int(label == 1 and digit in pairs(x)),
    ),
}


class Bags:
    """Bags of a task: half of all digits are for training, the others for tests."""

    def __init__(self, task: Task, *, training: bool) -> None:
        images, digits = load_digits(return_X_y=True)
        half = slice(0, None, 2) if training else slice(1, None, 2)
        self.task = task
        self.images = torch.from_numpy(images[half]).float() / 16
        self.places = [torch.from_numpy((digits[half] == i).nonzero()[0]) for i in range(10)]

    def draw(self) -> tuple[Tensor, Digits, int]:
        """Returns features [N, 64], their digits and the class."""
        present = self.task.draw()
        digits = [digit for digit in present for _ in range(random.randint(1, 3))]
        digits += random.choices(self.task.fillers, k=PATCHES - len(digits))
        random.shuffle(digits)
        rows = torch.tensor([int(random.choice(self.places[digit])) for digit in digits])
        return self.images[rows], digits, self.task.label(present)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            drawn = [self.draw() for _ in range(size)]
            yield torch.stack([x for x, _, _ in drawn]), torch.tensor([y for _, _, y in drawn])


def trained(name: str, task: Task) -> Model:
    model = build_model(name, 64, task.classes, **MODELS[name]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, UPDATES)
    batches = Bags(task, training=True).batches(BATCH)
    for _, (features, labels) in zip(range(UPDATES), batches, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(model(features), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def measure(model: Model, task: Task) -> Iterator[dict[str, object]]:
    """Measures every method that the model has, and a random map, on the same bags."""
    test = Bags(task, training=False)
    bags = [test.draw() for _ in range(TEST_BAGS)]
    with torch.no_grad():
        right = [int(model(x[None]).argmax()) == label for x, _, label in bags]
    for method in (*METHODS, "random"):
        found: dict[str, list[float]] = {"auc": [], "ap": [], "area": []}
        try:
            for i, (x, digits, label) in enumerate(bags):
                evidence = for_class(label)
                scores = (
                    random_map(len(x), i)
                    if method == "random"
                    else explain(model, x, evidence, method=method)
                )
                signs = [task.sign(digit, set(digits), label) for digit in digits]
                for name, metric in (("auc", roc_auc_score), ("ap", average_precision_score)):
                    found[name] += two_sided(metric, scores, torch.tensor(signs))
                found["area"].append(flip(model, x, scores, evidence).area)
        except ValueError:  # rollout of ABMIL
            continue
        yield {"method": method, "accuracy": mean(right), **{k: mean(v) for k, v in found.items()}}


def two_sided(metric: Callable[..., float], scores: Tensor, signs: Tensor) -> list[float]:
    """The mean over both signs, of those that the bag has."""
    both = [metric(signs == s, s * scores) for s in (1, -1) if (signs == s).any()]
    return [mean(both)] if both else []


def main() -> None:
    parser = common.options(__doc__ or "", "toy_tasks")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        globals().update(UPDATES=20, TEST_BAGS=8)
    rows = [] if options.fresh else common.read(options.output)
    have = {(row["task"], row["model"], row["seed"]) for row in rows}
    cases = [(t, m, s) for s in range(options.seeds) for t in TASKS for m in MODELS]
    for task, name, seed in common.progress([x for x in cases if (*x[:2], str(x[2])) not in have]):
        torch.manual_seed(seed)
        random.seed(seed)
        model = trained(name, TASKS[task])
        for found in measure(model, TASKS[task]):
            row = {"task": task, "model": name, "seed": seed, **found, **common.MACHINE}
            rows.append({key: common.text(value) for key, value in row.items()})
        common.write(rows, options.output)
