"""What a map explains: one number that a model says of a bag."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Evidence = Callable[[Tensor], Tensor]  # logits [B, classes] to [B]


def for_class(index: int) -> Evidence:
    """Returns what turns logits into the log-odds of a class against all others together.

    l_c - log sum over the others of exp l_k, or the logit itself if there is one. A class's own
    logit would not do: softmax ignores what is added to all of them.
    """

    def evidence(logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        others = torch.cat([logits[:, :index], logits[:, index + 1 :]], 1)
        return logits[:, index] - others.logsumexp(1)

    return evidence
