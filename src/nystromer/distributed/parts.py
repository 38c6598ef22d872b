"""Where a process's part of every sequence stands in the whole: its tokens, segments and edges.

Processes hold consecutive parts in the order of their ranks, of any length. B sequences, H heads,
N tokens of this process, L real tokens of a whole sequence, M landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.distributed.collectives import Group, exchanged
from nystromer.landmarks import segment_sizes
from nystromer.precision import accumulation_dtype


@dataclass(frozen=True)
class Side:
    """The queries or the keys of a call.

    mask: of this part, bool [B, N], None: every token is real. counts: real tokens of every
    process, [processes, B]. lengths: tokens of every process, padding too.
    """

    mask: Tensor | None
    counts: list[list[int]]
    lengths: list[int]
    rank: int

    @cached_property
    def totals(self) -> list[int]:
        """L of every sequence."""
        return [sum(counts) for counts in zip(*self.counts, strict=True)]

    @property
    def first(self) -> int:
        """The place of this part's first token in the whole, padding counted."""
        return sum(self.lengths[: self.rank])

    def real_before(self, b: int) -> int:
        return sum(counts[b] for counts in self.counts[: self.rank])

    def sizes(self, num_landmarks: int, device: torch.device) -> Tensor:
        """Tokens of every segment of the whole sequences, [B, M]."""
        sizes = [segment_sizes(total, num_landmarks) for total in self.totals]
        return torch.tensor(sizes, dtype=torch.int64, device=device)

    def few(self, num_landmarks: int) -> list[bool]:
        """Which sequences have at most M real tokens."""
        return [total <= num_landmarks for total in self.totals]

    def segment_sums(self, x: Tensor, num_landmarks: int) -> Tensor:
        """Sums of this part's tokens in every segment, [B, H, N, D] -> [B, H, M, D]."""
        sums = [self._sums_of(b, tokens, num_landmarks) for b, tokens in enumerate(x.unbind())]
        dtype = accumulation_dtype(x.dtype)
        return (
            torch.stack(sums)
            if sums
            else x.new_zeros(0, x.shape[1], num_landmarks, x.shape[3], dtype=dtype)
        )

    def _sums_of(self, b: int, tokens: Tensor, num_landmarks: int) -> Tensor:
        if self.mask is not None and self.counts[self.rank][b] < self.lengths[self.rank]:
            tokens = tokens[:, self.mask[b]]
        start = self.real_before(b)
        stop = start + tokens.shape[1]
        held, before, end = (
            [],
            0,
            0,
        )  # tokens in each segment that this part reaches; segments before
        for size in segment_sizes(self.totals[b], num_landmarks):
            end += size
            if end <= start:
                before += 1
            elif end - size < stop:
                held.append(min(end, stop) - max(end - size, start))
        dtype = accumulation_dtype(tokens.dtype)
        if not held:
            shape = (tokens.shape[0], num_landmarks, tokens.shape[2])
            return (
                tokens.new_zeros(shape, dtype=dtype) + tokens.sum()
            )  # keeps the graph: zero tokens
        sums = torch.stack([x.sum(1, dtype=dtype) for x in tokens.split(held, 1)], 1)
        return F.pad(sums, (0, 0, before, num_landmarks - before - len(held)))

    def own_landmarks(self, num_landmarks: int) -> Tensor:
        """The landmark that each token is, [B, N], in sequences of at most M; elsewhere any."""
        n = self.lengths[self.rank]
        before = torch.tensor(
            [self.real_before(b) + num_landmarks - total - 1 for b, total in enumerate(self.totals)]
        )
        if self.mask is None:
            rank = torch.arange(1, n + 1).expand(len(before), n)
        else:
            rank = self.mask.cumsum(1)
            before = before.to(rank.device)
        return (before[:, None] + rank).clamp(0, num_landmarks - 1)

    def with_neighbours(self, x: Tensor, reach: int, group: Group) -> tuple[Tensor, int]:
        """x [B, H, N, D] of this part between `reach` tokens of the parts before and behind it, as
        far as there are any; and how many stand before it. Padding is zero in them."""
        edges = [
            [self._edge(s, r, reach) for r in range(len(self.lengths))]
            for s in range(len(self.lengths))
        ]
        sent = [stop - start for start, stop in edges[self.rank]]
        received = [row[self.rank][1] - row[self.rank][0] for row in edges]
        parts = []
        for start, stop in edges[self.rank]:
            rows = x[:, :, start:stop]
            if self.mask is not None:
                rows = rows.masked_fill(~self.mask[:, None, start:stop, None], 0.0)
            parts.append(rows)
        rows = exchanged(torch.cat(parts, 2).movedim(2, 0), sent, received, group).movedim(0, 2)
        before = sum(received[: self.rank])
        return torch.cat([rows[:, :, :before], x, rows[:, :, before:]], 2), before

    def _edge(self, sender: int, receiver: int, reach: int) -> tuple[int, int]:
        """Which tokens of the sender's part stand at most `reach` from the receiver's."""
        n = self.lengths[sender]
        between = sum(self.lengths[min(sender, receiver) + 1 : max(sender, receiver)])
        wanted = max(0, min(n, reach - between))
        if sender == receiver or self.lengths[receiver] == 0 or wanted == 0:
            return 0, 0
        return (n - wanted, n) if sender < receiver else (0, wanted)
