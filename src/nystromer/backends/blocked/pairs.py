"""Which of three ways a sequence takes: few keys, few queries, or Nyström."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nystromer.backends.blocked.sequences import Sequence, sequences


@dataclass(frozen=True)
class Pair:
    """The query and the key tokens of one sequence, and which of the three ways it takes.

    few_keys: L_k <= M, so the keys are their own landmarks and `scatter` alone is exact attention.
    few_queries: L_q <= M, so the queries are, and `gather` alone is. Lemma 2; neither: Nyström.
    """

    queries: Sequence
    keys: Sequence
    num_landmarks: int

    @property
    def empty(self) -> bool:
        return min(self.queries.length, self.keys.length) == 0

    @property
    def few_keys(self) -> bool:
        return not self.empty and self.keys.length <= self.num_landmarks

    @property
    def few_queries(self) -> bool:
        return not self.empty and not self.few_keys and self.queries.length <= self.num_landmarks

    @property
    def nystrom(self) -> bool:
        return min(self.queries.length, self.keys.length) > self.num_landmarks

    @property
    def width(self) -> int:
        """The number of landmarks in use."""
        if self.nystrom:
            return self.num_landmarks
        return self.keys.length if self.few_keys else self.queries.length


def make_pairs(
    query: Tensor, key: Tensor, mask: Tensor | None, query_mask: Tensor | None, num_landmarks: int
) -> list[Pair]:
    """Makes one pair for every sequence of the batch, or of the packed sequences."""
    keys = sequences(mask, key.shape[0], key.shape[2])
    same = query_mask is mask and query.shape[2] == key.shape[2]
    queries = keys if same else sequences(query_mask, query.shape[0], query.shape[2])
    return [Pair(q, k, num_landmarks) for q, k in zip(queries, keys, strict=True)]


def nystrom_index(pairs: list[Pair]) -> list[int] | slice | None:
    """Returns the index of the sequences that take Nyström attention, or None."""
    chosen = [b for b, pair in enumerate(pairs) if pair.nystrom]
    return slice(None) if len(chosen) == len(pairs) else chosen or None
