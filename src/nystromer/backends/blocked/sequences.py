"""The real tokens of one sequence: everything in this backend reads through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from nystromer.checks import is_packed, packed_lengths
from nystromer.landmarks import means_of_run, spread_over_run_

SAMPLE = 256


class Workspace:
    """Named scratch memory, allocated once and carved anew for every block of tokens.

    A fresh buffer of a megabyte costs as much in page faults as the arithmetic done in it. Tables
    of logits and probabilities are `dtype`; the factors of products are `factor_dtype`, the same
    or bfloat16.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype, heads: int = 1, block: int = 64) -> None:
        self.heads, self.block = heads, block  # at a time: heads, and tokens of each
        self.like, self.dtype = like, dtype
        self.factor_dtype = torch.bfloat16 if like.dtype == torch.bfloat16 else dtype
        self.buffers: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        key = (name, shape, dtype)  # the last block of a sequence has a shape of its own
        if key not in self.buffers:
            self.buffers[key] = self.like.new_empty(shape, dtype=dtype or self.dtype)
        return self.buffers[key]

    def split(self, *tensors: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
        """Cuts tensors [H, ...] into views of the heads worked on at a time; None stays."""
        views = (repeat(None) if x is None else x.split(self.heads) for x in tensors)
        return zip(*views)  # noqa: B905, for what repeats is endless

    def zeros(self, *shape: int) -> Tensor:
        """Returns zeros in `dtype`, in memory of their own."""
        return self.like.new_zeros(shape, dtype=self.dtype)

    def cast(self, x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
        """Returns x, or its copy in scratch memory if it is of another dtype."""
        return x if x.dtype == dtype else self(name, *x.shape, dtype=dtype).copy_(x)

    def table(self, x: Tensor, name: str) -> Tensor:
        return self.cast(x, self.dtype, name)

    def factor(self, x: Tensor, name: str) -> Tensor:
        return self.cast(x, self.factor_dtype, name)

    def product(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Multiplies two batches of factors; the product is a factor too."""
        shape = (*a.shape[:2], b.shape[2])
        return torch.bmm(a, b, out=self(name, *shape, dtype=self.factor_dtype))

    def logits(self, a: Tensor, b: Tensor, name: str, minus: Tensor | None = None) -> Tensor:
        """Computes a @ b [- minus, [H, 1, M]] of two batches of factors, as a table.

        Of bfloat16 it is the product and what its rounding left, a @ b minus that product, which
        the machine sums before it rounds.
        """
        table = near = self.product(a, b, name)
        if near.dtype != self.dtype:
            left = self(f"{name} left", *near.shape, dtype=near.dtype)
            torch.baddbmm(near, a, b, beta=-1, out=left)
            table = self(name, *near.shape).copy_(near).add_(left)
        return table if minus is None else table.sub_(minus)

    def grad_logits(self, a: Tensor, b: Tensor, minus: Tensor, weights: Tensor) -> Tensor:
        """Computes a softmax gradient, (a @ b - minus) * weights, as a factor."""
        product = self("grad weights", *weights.shape, dtype=a.dtype)
        torch.baddbmm(minus.to(a.dtype), a, b, beta=-1, out=product)
        table = self.table(product, "grad logits")
        return self.factor(table.mul_(weights), "grad logits factor")

    def add_product(self, total: Tensor, a: Tensor, b: Tensor, near: Tensor | None = None) -> None:
        """Adds a @ b to a sum in `dtype`; of bfloat16, only what it differs by from `near` is
        rounded."""
        if a.dtype == total.dtype:
            total.baddbmm_(a, b)
        elif near is None:
            total += torch.bmm(a, b)
        else:
            near = near.to(a.dtype)
            total += torch.baddbmm(near, a, b, beta=-1)
            total += near


@dataclass(frozen=True)
class Sequence:
    """Where the L real tokens of one sequence are.

    start, stop: the first real position, and one past the last. positions: all of them, [L], if
    there is padding in between, else None; hole: that padding, bool [stop - start].
    """

    start: int
    stop: int
    length: int
    positions: Tensor | None = None
    hole: Tensor | None = None

    def blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """Gives the first and one past the last position of every block of `size` positions."""
        for i in range(self.start, self.stop, size):
            yield i, min(i + size, self.stop)

    def holes(self, i: int, j: int) -> Tensor | None:
        """Returns which of the positions i ... j are padding, bool [j - i], or None."""
        return None if self.hole is None else self.hole[i - self.start : j - self.start]

    def read(self, x: Tensor, i: int, j: int, work: Workspace, name: str) -> Tensor:
        """Returns x[:, i:j] as a factor of products, zero at padding. x: [H, N, D]."""
        part, hole, dtype = x[:, i:j], self.holes(i, j), work.factor_dtype
        if hole is None:
            return work.cast(part, dtype, name)
        copy = work(name, *part.shape, dtype=dtype).copy_(part)
        return copy if hole is None else copy.masked_fill_(hole[:, None], 0.0)

    def write(self, x: Tensor, i: int, j: int, block: Tensor, other: Tensor | None = None) -> None:
        """Writes x[:, i:j] = block [+ other], zero at padding."""
        part, hole = x[:, i:j], self.holes(i, j)
        if other is None:
            part.copy_(block)
        else:
            torch.add(block, other, out=part)
        if hole is not None:
            part.masked_fill_(hole[:, None], 0.0)

    def tokens(self, x: Tensor) -> Tensor:
        """Returns the real tokens of x, [H, N, D] -> [H, L, D]."""
        return x[:, self.start : self.stop] if self.positions is None else x[:, self.positions]

    def rough_mean(self, x: Tensor, work: Workspace) -> Tensor:
        """Returns the mean of some SAMPLE real tokens, evenly spaced, in `dtype`: [H, 1, D]."""
        step = max(1, self.length // SAMPLE)
        if self.positions is None:
            tokens = x[:, self.start : self.stop : step]
        else:
            tokens = x[:, self.positions[::step]]
        return tokens.mean(1, keepdim=True, dtype=work.dtype)

    def means(self, x: Tensor, num_landmarks: int) -> Tensor:
        """Returns the segment means of the real tokens, [H, M, D] (eq. 16)."""
        return means_of_run(self.tokens(x), num_landmarks)

    def spread(self, x: Tensor, grad_means: Tensor) -> None:
        """Adds to the real tokens of x their share of the gradient of `means`."""
        if self.positions is None:
            spread_over_run_(x[:, self.start : self.stop], grad_means)
        else:
            tokens = self.tokens(x)
            spread_over_run_(tokens, grad_means)
            self.put(x, tokens)

    def clear_outside(self, x: Tensor) -> None:
        """Zeroes x before the first and after the last real token."""
        if self.start > 0:
            x[:, : self.start] = 0
        if self.stop < x.shape[1]:
            x[:, self.stop :] = 0

    def put(self, x: Tensor, tokens: Tensor) -> None:
        """Writes [H, L, D] to the real positions of x, [H, N, D]."""
        if self.positions is None:
            x[:, self.start : self.stop] = tokens
        else:
            x[:, self.positions] = tokens.to(x.dtype)


def all_tokens(n: int) -> Sequence:
    return Sequence(0, n, n)


def sequences(mask: Tensor | None, batch: int, n: int) -> list[Sequence]:
    """Finds the real tokens of every sequence. mask: bool [B, N], None, or packed bounds."""
    if mask is None:
        return [all_tokens(n)] * batch
    if is_packed(mask):
        return [all_tokens(length) for length in packed_lengths("cu_seqlens", mask, n)]
    found = []
    for row in mask:
        positions = row.nonzero()[:, 0]
        length = len(positions)
        if length == 0:
            found.append(Sequence(0, 0, 0))
            continue
        start, stop = int(positions[0]), int(positions[-1]) + 1
        if stop - start == length:
            found.append(Sequence(start, stop, length))
        else:
            found.append(Sequence(start, stop, length, positions, ~row[start:stop]))
    return found
