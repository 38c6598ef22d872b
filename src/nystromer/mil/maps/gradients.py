"""Gradient x input, and integrated gradients: how much the model reacts to a patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from nystromer.mil.maps.evidence import Evidence
from nystromer.mil.models import Model
from nystromer.mil.models.batch import BLOCK

STEPS = 32
MIDPOINTS = tuple((i + 0.5) / STEPS for i in range(STEPS))


def gradient(model: Model, features: Tensor, evidence: Evidence) -> Tensor:
    r"""Returns s_n = x_n · ∂f/∂x_n of every patch, [N].

    Args:
        model: Any that has `embed` and `read`.
        features: x, [N, D].
        evidence: f, of logits.
    """
    return integrated_gradients(model, features, evidence, alphas=(1.0,))


def integrated_gradients(
    model: Model,
    features: Tensor,
    evidence: Evidence,
    *,
    alphas: Sequence[float] = MIDPOINTS,
) -> Tensor:
    r"""Returns s_n = x_n · mean over α of ∂f/∂x_n at αx, [N].

    With many α between 0 and 1 the sum of all s_n is f(x) - f(0) (Sundararajan et al. 2017,
    arXiv:1703.01365; the baseline is zero). Every α costs a forward and a backward pass.

    Args:
        model: Any that has `embed` and `read`.
        features: x, [N, D].
        evidence: f, of logits.
        alphas: Where gradients are taken.
    """
    total = features.new_zeros(len(features), dtype=torch.float32)
    for alpha in alphas:
        total += _times_input(model, features, evidence, alpha)
    return total / len(alphas)


def _times_input(model: Model, features: Tensor, evidence: Evidence, alpha: float) -> Tensor:
    """x_n · ∂f/∂x_n at αx. Backward stops at the embedded patches h, [N, C]; from there on it goes
    block by block, so that neither features nor their gradients are ever whole in float32."""
    parts = features.split(BLOCK)
    scores = []
    with frozen(model):
        h = torch.cat([model.embed(alpha * part.float()) for part in parts]).requires_grad_()
        (grad_h,) = torch.autograd.grad(evidence(model.read(h[None])).sum(), h)
        for part, grad in zip(parts, grad_h.split(BLOCK), strict=True):
            x = part.float()
            at = (alpha * x).requires_grad_()
            (grad_x,) = torch.autograd.grad(model.embed(at), at, grad)
            scores.append((grad_x * x).sum(1))
    return torch.cat(scores)


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Has no gradients of the model's parameters taken, and nothing kept for them."""
    parameters = [x for x in model.parameters() if x.requires_grad]
    for x in parameters:
        x.requires_grad_(False)
    try:
        yield
    finally:
        for x in parameters:
            x.requires_grad_()
