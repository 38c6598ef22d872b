"""Single: what the model says of a bag that is this patch alone."""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.mil.maps.evidence import Evidence
from nystromer.mil.models import Model
from nystromer.mil.models.batch import embedded

BAGS = 2048  # bags of one patch in a batch


@torch.no_grad()
def single(model: Model, features: Tensor, evidence: Evidence) -> Tensor:
    r"""Returns s_n = f({x_n}) of every patch, [N].

    For mean and max pooling this is the patch's own logit. A batch of small bags is one forward
    pass, so N patches cost about as much as two bags of N.

    Args:
        model: TransMIL, ABMIL or pooling.
        features: x, [N, D].
        evidence: f, of logits.
    """
    parts = features[:, None].split(BAGS)
    return torch.cat([evidence(model.read(embedded(model.embed, part))) for part in parts])
