"""What the processes of a group say to one another: sums, the largest of something, and rows.

All of them have to call the same functions here in the same order. `summed` and `exchanged` have
gradients; every process takes part in their backward too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

Group = dist.ProcessGroup


def group_of(group: Group | None, mesh: DeviceMesh | None) -> Group:
    """The group that shares a sequence: the one given, that of a mesh of one dimension, or all.

    Raises:
        ValueError: If both are given, or the mesh has more dimensions.
        RuntimeError: If torch.distributed was not started.
    """
    if mesh is not None:
        if group is not None:
            raise ValueError("`group` and `mesh` were both given; leave one of them out.")
        if mesh.ndim != 1:
            raise ValueError(
                f"`mesh` must have one dimension, along which the sequence is cut, got {mesh.ndim};"
                ' write mesh["sequence"] with the name of that dimension.'
            )
        return mesh.get_group()
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "nystromer.distributed needs a process group, and torch.distributed was not started; "
            "start with torchrun and call torch.distributed.init_process_group()."
        )
    return dist.group.WORLD if group is None else group  # type: ignore[return-value]


@contextmanager
def reaching(group: Group) -> Iterator[None]:
    """Says in one sentence what it means when a collective fails."""
    try:
        yield
    except RuntimeError as error:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        raise RuntimeError(
            f"Process {rank} of {size} did not reach the others: one of them has ended, or did not "
            f"answer within the time-out of the group. Its own message says why. ({error})"
        ) from error


def gathered(x: Tensor, group: Group) -> list[list[Any]]:
    """The numbers x [n] of every process, as lists on the host."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    with reaching(group):
        dist.all_gather(parts, x, group=group)
    return torch.stack(parts).tolist()


def largest(x: Tensor, group: Group) -> Tensor:
    """Elementwise the largest of all processes; it has no gradient."""
    return _reduced(x.detach(), dist.ReduceOp.MAX, group)


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over all processes. Every process uses it, so its gradient is a sum as well."""
    return _Sum.apply(x, group)


def exchanged(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: Group) -> Tensor:
    """Sends rows [sum(sent), ...], sent[r] of them to process r; returns what the others sent to
    this one, [sum(received), ...], in their order."""
    return _Exchange.apply(rows, list(sent), list(received), group)


def _reduced(x: Tensor, op: Any, group: Group) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    with reaching(group):
        dist.all_reduce(x, op, group=group)
    return x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _reduced(x, dist.ReduceOp.SUM, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return summed(grad, ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Group
    ) -> Tensor:
        ctx.back = (received, sent, group)
        result = rows.new_empty(sum(received), *rows.shape[1:])
        with reaching(group):
            dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return exchanged(grad, *ctx.back), None, None, None
