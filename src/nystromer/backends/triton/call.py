"""One call: its tensors and tokens, the grids and the arguments of its kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
import triton
from torch import Tensor

from nystromer.backends.triton.means import means
from nystromer.backends.triton.tiles import Tiles, padded, precision, split, tiles_for
from nystromer.backends.triton.tokens import Tokens, find_tokens
from nystromer.precision import accumulation_dtype


@dataclass(frozen=True)
class Call:
    """One call: query [B, H, Nq, D], key [B, H, Nk, D], value [B, H, Nk, Dv], taps [H, K]."""

    query: Tensor
    key: Tensor
    value: Tensor
    queries: Tokens
    keys: Tokens
    taps: Tensor | None
    num_landmarks: int
    tiles: Tiles

    @property
    def heads(self) -> int:
        """The number of heads of the whole batch, B H."""
        return self.query.shape[0] * self.query.shape[1]

    @property
    def kernel(self) -> int:
        return 0 if self.taps is None else self.taps.shape[1]

    @property
    def exact(self) -> bool:
        """Whether some sequence may have at most M tokens, which gets exact attention (Lemma 2)."""
        masked = self.queries.lengths is not None or self.keys.lengths is not None
        return masked or min(self.query.shape[2], self.key.shape[2]) <= self.num_landmarks

    @cached_property
    def exact_rows(self) -> Tensor:
        """Which sequences have at most M tokens, bool [B, 1, 1, 1]."""
        return (self._few(self.queries, self.query) | self._few(self.keys, self.key)).view(
            -1, 1, 1, 1
        )

    def _few(self, tokens: Tokens, x: Tensor) -> Tensor:
        if tokens.lengths is not None:
            return tokens.lengths <= self.num_landmarks
        few = x.shape[2] <= self.num_landmarks
        return torch.full((x.shape[0],), few, device=x.device)

    def unless_exact(self, nystrom: Tensor, exact: Tensor | float) -> Tensor:
        return torch.where(self.exact_rows, exact, nystrom) if self.exact else nystrom

    def kernel_2(self, q_tilde: Tensor, k_tilde: Tensor, scale: float) -> Tensor:
        """softmax(s Q~ K~ᵀ), [B, H, M, M]; the identity for exact sequences."""
        kernel_2 = torch.softmax(scale * q_tilde @ k_tilde.mT, -1)
        m = self.num_landmarks
        return self.unless_exact(
            kernel_2, torch.eye(m, dtype=kernel_2.dtype, device=kernel_2.device)
        )

    def landmarks(self, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Returns landmarks: given ones, segment means, or the tokens if there are at most M."""
        dtype = accumulation_dtype(self.query.dtype)
        if given is not None and not self.exact:
            return given[0].to(dtype, copy=True), given[1].to(dtype, copy=True)
        own = [
            means(x, self.num_landmarks, tokens, dtype, self.tiles)
            for x, tokens in ((self.query, self.queries), (self.key, self.keys))
        ]
        if given is not None:
            own = [self.unless_exact(g.to(dtype), x) for g, x in zip(given, own, strict=True)]
        return own[0], own[1]

    def share(self, grad: Tensor, tokens: Tokens, n: int, landmarks_given: bool) -> Tensor:
        """Returns what each token of a segment gets of its landmark's gradient, [B, H, M, D]."""
        m = self.num_landmarks
        if tokens.lengths is None:
            length = torch.full((1, 1), n, device=grad.device)  # no copy from the host
        else:
            length = tokens.lengths[:, None]
        size = length // m
        longer = torch.arange(m, device=grad.device) >= (size + 1) * m - length
        share = grad / (size + longer).clamp(min=1)[:, None, :, None]
        return self.unless_exact(torch.zeros_like(share), share) if landmarks_given else share

    def options(self) -> dict[str, object]:
        return {
            "BM": self.tiles.landmarks,
            "BN": self.tiles.tokens,
            "BD": padded(self.query.shape[3]),
            "BDV": padded(self.value.shape[3]),
            "EXACT": self.exact,
            "PRECISION": precision(),
            "num_warps": self.tiles.warps,
            "num_stages": self.tiles.stages,
        }

    def grid_landmarks(self, splits: int) -> tuple[int]:
        """Blocks of landmarks of one split stand together: they share its tokens in the cache."""
        blocks = triton.cdiv(self.num_landmarks, self.tiles.landmarks)
        return (self.heads * splits * blocks,)

    def split_queries(self) -> tuple[int, int]:
        return split(self.query.shape[2], self.tiles.tokens)

    def split_keys(self) -> tuple[int, int]:
        return split(self.key.shape[2], self.tiles.tokens)

    def key_arguments(self) -> tuple:
        key, value = self.key, self.value
        tokens = (self.keys.ranks, self.keys.lengths)
        return key, *key.stride()[:3], value, *value.stride()[:3], *tokens

    def key_sizes(self) -> tuple[int, ...]:
        """The sizes H, N, M, D, DV that kernels over keys take."""
        heads, n, dim = self.key.shape[1:]
        return heads, n, self.num_landmarks, dim, self.value.shape[3]

    def query_tokens(self) -> tuple[Tensor | None, ...]:
        return self.queries.ranks, self.queries.lengths, self.keys.lengths

    def query_sizes(self) -> tuple[int, ...]:
        """The sizes H, N, NK, M, D, DV that kernels over queries take."""
        heads, n, dim = self.query.shape[1:]
        return heads, n, self.key.shape[2], self.num_landmarks, dim, self.value.shape[3]


def make_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    taps: Tensor | None,
    num_landmarks: int,
) -> Call:
    query, key, value = (with_unit_stride(x) for x in (query, key, value))
    keys = find_tokens(mask)
    queries = keys if query_mask is mask else find_tokens(query_mask)
    tiles = tiles_for(query, value, num_landmarks)
    return Call(query, key, value, queries, keys, taps, num_landmarks, tiles)


def with_unit_stride(x: Tensor) -> Tensor:
    """Returns x with stride 1 along its features, as the kernels need it."""
    return x if x.stride(3) == 1 else x.contiguous()


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes x's device the current one, on which Triton launches its kernels."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
