"""The fast backend of clustered attention: a few heads at a time, in memory that stays in cache.

A sequence is cut to its real tokens first, so padding and batch neighbours cannot reach it. No
table of more than a few heads exists at a time, and the backward computes them again. Autograd and
torch.compile see one operation, and one for its backward; it keeps the inputs, the order of the
tokens by clusters, and the choice of exact keys.
"""

from __future__ import annotations

from torch import Tensor

from nystromer.clustered.budget import Budget
from nystromer.clustered.operation import clustered_forward


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, budget: Budget, mask: Tensor | None, scale: float
) -> Tensor:
    return clustered_forward(query, key, value, mask, *budget, scale)[0]
