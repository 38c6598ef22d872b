"""How far a map can be trusted: taking patches away in its order, and annotated patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nystromer.mil.maps.evidence import Evidence
from nystromer.mil.models import Model, pad_bags

STEPS = 20
TOGETHER = 4096  # patches in a batch of small bags


@dataclass(frozen=True)
class Flipping:
    """What the model says while patches are taken away in the order of a map.

    Args:
        removed: Shares of the patches that are taken away, [F]; the first is 0.
        most_first: Probability of what is explained, [F], the most important patches gone first.
        least_first: Likewise, the least important gone first.
    """

    removed: Tensor
    most_first: Tensor
    least_first: Tensor

    @property
    def area(self) -> float:
        """The area between both curves: 0 on average for a random order, at most 1."""
        return float(torch.trapezoid(self.least_first - self.most_first, self.removed))


@torch.no_grad()
def flip(model: Model, features: Tensor, scores: Tensor, evidence: Evidence) -> Flipping:
    """Takes patches away by a map, most important first and least important first.

    A map that is right makes the probability fall at once, and stay until the end. Every point is a
    forward pass over what is left. One patch at least is left: models read no empty bags.

    Args:
        model: Of nystromer.mil.models, in eval mode.
        features: [N, D].
        scores: The map, [N].
        evidence: What it explains.
    """
    n = len(features)
    counts = sorted({min(round(i * n / STEPS), n - 1) for i in range(STEPS + 1)})
    together = max(1, TOGETHER // n)  # bags in a batch
    batches = [counts[i : i + together] for i in range(0, len(counts), together)]
    order = scores.argsort(descending=True, stable=True)

    def curve(gone_first: Tensor) -> Tensor:
        answers = []
        for some in batches:
            bags = [features[gone_first[count:].sort().values] for count in some]
            answers.append(evidence(model(*pad_bags(bags))))
        return torch.cat(answers).float().sigmoid()

    return Flipping(torch.tensor(counts) / n, curve(order), curve(order.flip(0)))


def random_map(patches: int, seed: int) -> Tensor:
    """Returns scores in random order, [N]: what a map must beat."""
    return torch.rand(patches, generator=torch.Generator().manual_seed(seed))


def auc(scores: Tensor, positive: Tensor) -> float | None:
    """Returns how often a positive patch has the higher score of two, ties counted half; 0.5 for a
    random order. None if all patches are alike.

    Args:
        scores: [N].
        positive: bool [N].
    """
    pos, neg = int(positive.sum()), int((~positive).sum())
    if not pos or not neg:
        return None
    _, places, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[places]  # of ties, their mean
    return (float(ranks[positive].double().sum()) - pos * (pos + 1) / 2) / (pos * neg)
