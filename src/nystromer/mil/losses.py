"""Losses of a bag's logits, and the risk that a survival model gives.

Survival in discrete time (Zadeh and Schmid 2021): logit k of a bag gives the hazard
h_k = sigmoid(l_k), the probability of the event in interval k for who reached it, and
S_k = (1 - h_0) ... (1 - h_k) that of living on behind it. Cox: one logit, the log of the hazard.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean of w_y (-log p_y) over the bags.

    The sum is divided by the number of bags, and not, as torch does it, by the sum of their
    weights, which would take the weights away from a batch of one bag.

    Args:
        logits: [B, C].
        labels: Numbers of classes, int64 [B].
        weights: Of the classes, [C].
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses if weights is None else losses * weights.to(losses)[labels]).mean()


def hazard_nll(logits: Tensor, bins: Tensor, events: Tensor) -> Tensor:
    """Returns the mean negative log-likelihood of survival in discrete time.

    A bag with an event in interval y gives -log(S_{y-1} h_y), and one that was censored there
    -log S_y.

    Args:
        logits: [B, K].
        bins: Intervals in which the times lie, int64 [B].
        events: Whether the event was seen, bool [B].
    """
    intervals = torch.arange(logits.shape[1], device=logits.device)
    survived = intervals < (bins + (~events).long())[:, None]  # [B, K]
    living = (F.softplus(logits) * survived).sum(1)  # -log(1 - h) = softplus(l)
    dying = F.softplus(-logits).gather(1, bins[:, None])[:, 0]  # -log h
    return (living + dying * events).mean()


def cox_nll(logits: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """Returns Cox's negative log partial likelihood of a batch, a mean over its events.

    An event at time t gives log(sum of exp(r_j) over all bags with t_j >= t) - r (Breslow's rule
    for ties). A batch without events gives zero.

    Args:
        logits: r, [B, 1].
        times: [B].
        events: Whether the event was seen, bool [B].
    """
    risks = logits[:, 0]
    at_risk = times[None] >= times[:, None]  # [B, B]: who is looked at when bag i has its event
    sums = risks[None].masked_fill(~at_risk, -torch.inf).logsumexp(1)
    return ((sums - risks) * events).sum() / events.sum().clamp(min=1)


def risk_of_hazards(logits: Tensor) -> Tensor:
    """Returns -(S_0 + ... + S_{K-1}) of logits [..., K]: the higher, the sooner the event."""
    return -torch.sigmoid(-logits).cumprod(-1).sum(-1)
