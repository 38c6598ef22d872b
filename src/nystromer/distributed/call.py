"""What all parts of a call must agree in, told before any other exchange can wait forever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nystromer.checks import DTYPES
from nystromer.distributed.collectives import Group, gathered
from nystromer.distributed.parts import Side
from nystromer.pinv import NORM_DIMS, Pinv

DISAGREE = (
    "All parts of a sequence must have the same {what}, got {one} in process {i} and {other} in "
    "process {j}."
)
INITS = tuple(NORM_DIMS)
BACKENDS = ("eager", "blocked", "native", "triton")


class Part(NamedTuple):
    """What one process passes, as numbers. The first fields must agree."""

    batch: float
    heads: float
    dim: float
    value_dim: float
    dtype: float
    num_landmarks: float
    scale: float
    pinv_iterations: float
    pinv_init: float
    pinv_ridge: float
    taps: float
    gradients: float
    backend: float
    rows: float
    queries: float
    keys: float


NAMES = {
    "batch": "batch size B",
    "heads": "number of heads H",
    "dim": "head width D",
    "value_dim": "value width Dv",
    "dtype": "dtype",
    "num_landmarks": "`num_landmarks`",
    "scale": "`scale`",
    "pinv_iterations": "`pinv_iterations`",
    "pinv_init": "`pinv_init`",
    "pinv_ridge": "`pinv_ridge`",
    "taps": "number of taps in `conv_weight` (0: none)",
    "gradients": "need for gradients (query, key, value, taps)",
    "backend": "backend",
    "rows": "number of `rows`",
}
WORDS: dict[str, Callable[[float], object]] = {
    "dtype": lambda x: DTYPES[int(x)],
    "pinv_init": lambda x: repr(INITS[int(x)]),
    "pinv_ridge": lambda x: None if x < 0 else x,
    "gradients": lambda x: format(int(x), "04b"),
    "backend": lambda x: repr(BACKENDS[int(x)]),
    "scale": lambda x: x,
}


@dataclass(frozen=True)
class Case:
    """A call on a part, checked: q, k, v are [B, H, N, D], masks bool [B, N] or None."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    query_mask: Tensor | None
    num_landmarks: int
    scale: float
    pinv: Pinv
    conv_weight: Tensor | None
    backend: str
    rows: int = 0

    def part(self) -> Part:
        tensors = (self.query, self.key, self.value, self.conv_weight)
        gradients = 0
        for x in tensors:
            needed = x is not None and x.requires_grad and torch.is_grad_enabled()
            gradients = 2 * gradients + needed
        batch, heads, queries, dim = self.query.shape
        return Part(
            batch,
            heads,
            dim,
            self.value.shape[3],
            DTYPES.index(self.query.dtype),
            self.num_landmarks,
            self.scale,
            self.pinv.iterations,
            INITS.index(self.pinv.init),
            -1.0 if self.pinv.ridge is None else self.pinv.ridge,
            0 if self.conv_weight is None else self.conv_weight.shape[1],
            gradients,
            BACKENDS.index(self.backend),
            self.rows,
            queries,
            self.key.shape[2],
        )


@dataclass(frozen=True)
class Whole:
    """Where this part's queries and keys stand in the whole, and M, at most the whole's length."""

    queries: Side
    keys: Side
    num_landmarks: int

    @property
    def exact(self) -> list[bool]:
        """Which sequences have at most M queries or keys (Lemma 2)."""
        few = zip(
            self.queries.few(self.num_landmarks), self.keys.few(self.num_landmarks), strict=True
        )
        return [a or b for a, b in few]


def agreed(case: Callable[[], Case], device: torch.device, group: Group) -> tuple[Case, Whole]:
    """Checks this part, then that all parts agree; every process raises if one of them must.

    Raises:
        TypeError, ValueError, NotImplementedError: As `case`, in the process whose part is refused.
        ValueError: In the others; in all of them where parts disagree, naming two of them.
    """
    rank = dist.get_rank(group)
    nothing = torch.full((1 + len(Part._fields),), -1.0, dtype=torch.float64, device=device)
    try:
        mine = case()
    except Exception:
        gathered(nothing, group)
        raise
    told = torch.tensor([0.0, *mine.part()], dtype=torch.float64, device=device)
    answers = gathered(told, group)
    refused = [i for i, answer in enumerate(answers) if answer[0] < 0]
    if refused:
        raise ValueError(
            f"Process {refused[0]} refused its part of the sequence; its own message says why."
        )
    parts = [Part(*answer[1:]) for answer in answers]
    for name, what in NAMES.items():
        values = [getattr(part, name) for part in parts]
        for j, value in enumerate(values):
            if value != values[0]:
                word = WORDS.get(name, int)
                raise ValueError(
                    DISAGREE.format(what=what, one=word(values[0]), i=0, other=word(value), j=j)
                )
    queries, keys = [int(p.queries) for p in parts], [int(p.keys) for p in parts]
    query_mask = mine.query_mask
    if query_mask is None and queries == keys:
        query_mask = mine.mask
    masks = (query_mask, mine.mask)
    counts = []
    for mask, x in zip(masks, (mine.query, mine.key), strict=True):
        all_real = torch.full((x.shape[0],), x.shape[2], device=device)
        counts.append(all_real if mask is None else mask.sum(1))
    told = torch.cat(counts)
    batch = mine.query.shape[0]
    found = gathered(told, group)
    sides = (
        Side(masks[0], [row[:batch] for row in found], queries, rank),
        Side(masks[1], [row[batch:] for row in found], keys, rank),
    )
    longest = max(1, sum(queries), sum(keys))
    return mine, Whole(*sides, min(mine.num_landmarks, longest))
