"""Models whose sequences are cut over several processes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from nystromer.distributed.attention import nystrom_attention
from nystromer.distributed.attention_rows import nystrom_attention_rows
from nystromer.distributed.collectives import Group, group_of, summed
from nystromer.distributed.parts import Side

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class SharedSequence:
    """The processes that share a model's sequences: each holds an even part, in order."""

    group: Group

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """`nystrom_attention` of this process's part."""
        return nystrom_attention(query, key, value, group=self.group, **options)

    def attention_rows(self, query: Tensor, key: Tensor, rows: Any, **options: Any) -> Tensor:
        """`nystrom_attention_rows` of this process's part."""
        return nystrom_attention_rows(query, key, rows, group=self.group, **options)

    def bounds(self, n: int) -> tuple[int, int]:
        """The first token of this process's part of n, and one past its last."""
        rank = dist.get_rank(self.group)
        start, stop = self._ends(n)[rank : rank + 2]
        return start, stop

    def _ends(self, n: int) -> list[int]:
        """Where the parts of n tokens begin, and n."""
        size = dist.get_world_size(self.group)
        return [n * r // size for r in range(size + 1)]

    def part(self, x: Tensor) -> Tensor:
        """This process's part of x, [B, N, ...]."""
        start, stop = self.bounds(x.shape[1])
        return x[:, start:stop]

    def summed(self, x: Tensor) -> Tensor:
        """The sum of x over the processes, with a gradient."""
        return summed(x, self.group)

    def of_the_first(self, x: Tensor) -> Tensor:
        """x of the first process, in every process."""
        return self.summed(x * (dist.get_rank(self.group) == 0))

    def with_neighbours(self, x: Tensor, n: int, reach: int) -> tuple[Tensor, int]:
        """This part of n tokens, x [B, part, E], between `reach` tokens of the parts before and
        behind it, as far as there are any; and how many stand before it."""
        lengths = [stop - start for start, stop in pairwise(self._ends(n))]
        counts = [[length] * len(x) for length in lengths]
        side = Side(None, counts, lengths, dist.get_rank(self.group))
        found, before = side.with_neighbours(x[:, None], reach, self.group)
        return found[:, 0], before

    def first(self, states: Tensor, n: int) -> Tensor:
        """The state of the first of all n tokens, [B, E], from each process's [B, part, E]."""
        start, stop = self.bounds(n)
        holds_it = start == 0 and stop > 0
        return self.summed(states[:, :1].sum(1) * holds_it)


def sequence_parallel(
    model: Model, mesh: DeviceMesh | None = None, *, group: Group | None = None
) -> Model:
    r"""Cuts the sequences that a model reads over the processes of a group. Changes the model.

    Three kinds of models can share a sequence:

    * A Nyströmformer of nystromer.hf: NystromformerModel, ForMaskedLM, ForPreTraining and
      ForSequenceClassification. Each process calls it with the same whole input, [B, N]. States and
      logits of tokens are those of its own part, positions N r // S to N (r + 1) // S of process r
      of S; the loss and the logits of a sequence are of the whole, the same in every process.
    * TransMIL of nystromer.mil.models in mode "fixed". Each process calls it with the same whole
      bag, one at a time, and gets the logits of the bag. Its PPEG also sends three rows of the
      square of patches to each neighbour, 3 √N tokens.
    * Any torch model that mixes tokens in `nystromer.NystromAttention` alone. Each process calls it
      with its own part, [B, n, E] of any length n.

    Gradients are as torch's DDP and FSDP expect them: their mean over all processes is the gradient
    of the loss. Without them, take that mean yourself.

    Args:
        model: With the same weights in every process.
        mesh: A mesh of one dimension.
        group: A process group in place of the mesh; None means all processes.

    Returns:
        The model.

    Raises:
        TypeError: If the model has no attention that can share a sequence.
        ValueError: If it has one that cannot: exact, clustered, or under another head.
    """
    shared = SharedSequence(group_of(group, mesh))
    name = type(model).__name__
    plan = getattr(getattr(model, "config", None), "nystrom", None)
    if plan is not None:
        raise ValueError(
            f"sequence_parallel cannot cut the sequences of {name}, an encoder that was converted "
            "(clustered attention, say, sorts all tokens of a sequence); it takes Nyströmformer "
            "models, TransMIL and models of nystromer.NystromAttention."
        )
    for module in model.modules():
        check: Any = getattr(module, "check_shareable", None)
        if check is not None:
            check()
    modules: list[Any] = [
        module for module in model.modules() if hasattr(module, "shared_sequence")
    ]
    if not modules:
        raise TypeError(
            "sequence_parallel takes Nyströmformer models, TransMIL and models of "
            f"NystromAttention, got {name}, which has no such attention."
        )
    for module in modules:
        module.shared_sequence = shared
    return model
