"""Observes an attention layer over real batches: the error of everything that it could be.

Shapes: B sequences, H heads, N tokens, D features of a head, K taps of the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nystromer.functional import nystrom_attention
from nystromer.hf.calibration.fidelity import Fidelity
from nystromer.hf.conversion.attend import approximate, landmarks_of, repeated
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.hf.masks import key_mask

KERNEL = 33  # K
NYSTROM: tuple[tuple[str, float | None], ...] = (  # landmarks, ridge
    ("segment_means", None),
    ("kmeans", None),
    ("kmeans", 1e-3),
    ("kmeans", 1e-2),
    ("kmeans", 1e-1),
)
CLUSTERED = (  # G, M and T of clustered attention as parts of the landmarks
    (0.5, 0.125, 0.375),
    (1.0, 0.25, 0.75),
    (1.0, 0.5, 1.5),
    (2.0, 0.5, 1.5),
)


@dataclass(frozen=True)
class Scheme:
    """One way to do a layer; a Nyström one has the convolution that leaves the least error.

    Args:
        choice: What it is.
        squares: ‖output - exact output‖² of every head over all real tokens.
        alone: The model's output when this layer alone is done so; of one scheme an attention.
    """

    choice: LayerChoice
    squares: tuple[float, ...]
    alone: Fidelity | None = None


def clustered_choices(name: str, num_heads: int, num_landmarks: int) -> list[LayerChoice]:
    """Returns clustered attention with half the keys that M landmarks score, as many, and up to
    twice as many."""
    budgets = [[max(1, int(num_landmarks * part)) for part in parts] for parts in CLUSTERED]
    powers = [[_power_of_two(x) for x in clusters] + [exact] for *clusters, exact in budgets]
    return [
        LayerChoice(
            name,
            "clustered",
            num_query_clusters=queries,
            num_key_clusters=keys,
            num_exact_keys=exact,
            num_heads=num_heads,
        )
        for queries, keys, exact in dict.fromkeys(map(tuple, powers))
    ]


class Observed:
    """Collects the sums over all batches from which a layer's errors and its best taps follow."""

    def __init__(self, name: str, num_heads: int, num_landmarks: int) -> None:
        plain = LayerChoice(name, num_landmarks=num_landmarks, num_heads=num_heads)
        self.nystrom = [replace(plain, landmarks=x, ridge=ridge) for x, ridge in NYSTROM]
        self.clustered = clustered_choices(name, num_heads, num_landmarks)
        self.shortest = plain.exact_below
        self.count, self.longest, self.head_dim = 0, 0, 0
        zeros = torch.zeros(num_heads, KERNEL, KERNEL, dtype=torch.float64)
        self.gram, self.power = zeros, zeros[:, 0, 0]  # Σ SᵀS, Σ ‖exact‖²
        self.cross = [zeros[:, 0] for _ in self.nystrom]  # Σ Sᵀr
        self.nystrom_squares = [self.power for _ in self.nystrom]  # Σ ‖r‖²
        self.clustered_squares = [self.power for _ in self.clustered]

    @torch.no_grad()
    def add(
        self, query: Tensor, key: Tensor, value: Tensor, output: Tensor, mask: Any, kwargs: Any
    ) -> None:
        batch, _, n, self.head_dim = query.shape
        real = key_mask(mask, batch)
        real = torch.ones(batch, n, dtype=torch.bool, device=query.device) if real is None else real
        lengths = real.sum(1)
        self.longest = max(self.longest, int(lengths.max()))
        key, value = repeated(query, key), repeated(query, value)
        for i in (lengths >= self.shortest).nonzero()[:, 0].tolist():
            used = real[i]
            q, k, v, y = (x[i : i + 1][:, :, used].float() for x in (query, key, value, output))
            self.count += 1
            self.power = self.power + _squares(y)
            self._add_nystrom(q, k, v, y, kwargs.get("scaling"))
            self._add_clustered(q, k, v, y, kwargs.get("scaling"))

    def _add_nystrom(
        self, q: Tensor, k: Tensor, v: Tensor, exact: Tensor, scale: float | None
    ) -> None:
        """Adds sums of r = exact - Nyström output and of the shifted values S of each head."""
        shifted = F.pad(v, (0, 0, KERNEL // 2, KERNEL // 2)).unfold(2, KERNEL, 1)[0]
        shifted = shifted.flatten(1, 2)  # [H, N D, K]
        self.gram = self.gram + (shifted.mT @ shifted).double().cpu()
        by_landmarks = {choice.landmarks: choice for choice in self.nystrom}
        landmarks = {x: landmarks_of(c, q, k, None) for x, c in by_landmarks.items()}
        for j, choice in enumerate(self.nystrom):
            nystrom = nystrom_attention(
                q,
                k,
                v,
                num_landmarks=choice.num_landmarks,
                scale=scale,
                landmarks=landmarks[choice.landmarks],
                pinv_ridge=choice.ridge,
            )
            r = exact - nystrom
            cross = (r[0].flatten(1)[:, None] @ shifted)[:, 0]
            self.cross[j] = self.cross[j] + cross.double().cpu()
            self.nystrom_squares[j] = self.nystrom_squares[j] + _squares(r)

    def _add_clustered(
        self, q: Tensor, k: Tensor, v: Tensor, exact: Tensor, scale: float | None
    ) -> None:
        for j, choice in enumerate(self.clustered):
            if q.shape[2] >= choice.exact_below:
                r = exact - approximate(choice, q, k, v, None, scale)
                self.clustered_squares[j] = self.clustered_squares[j] + _squares(r)

    @property
    def plain(self) -> float:
        """The error of the plain swap, ‖output - exact output‖ / ‖exact output‖."""
        return float((self.nystrom_squares[0].sum() / self.power.sum()).sqrt())

    def schemes(self) -> tuple[Scheme, ...]:
        """Returns the Nyström schemes with their taps, then those of clustered attention that some
        sequence was long enough for."""
        clustered = [
            Scheme(choice, tuple(squares.tolist()))
            for choice, squares in zip(self.clustered, self.clustered_squares, strict=True)
            if self.longest >= choice.exact_below
        ]
        return (*self._fitted(), *clustered)

    def _fitted(self) -> Sequence[Scheme]:
        """Returns each Nyström scheme with its taps w = (Σ SᵀS + εI)⁻¹ Σ Sᵀr and their errors."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        gram = self.gram + 1e-3 * diagonal * torch.eye(KERNEL, dtype=torch.float64)
        schemes = []
        for choice, cross, squares in zip(
            self.nystrom, self.cross, self.nystrom_squares, strict=True
        ):
            taps = torch.linalg.solve(gram, cross)
            left = squares - 2 * (taps * cross).sum(1)
            left = left + (taps * (self.gram @ taps[..., None])[..., 0]).sum(1)
            rounded = tuple(tuple(float(f"{x:.4g}") for x in row) for row in taps.tolist())
            fitted = replace(choice, conv_kernel_size=KERNEL, conv_taps=rounded)
            schemes.append(Scheme(fitted, tuple(left.clamp(min=0).tolist())))
        return schemes


def _power_of_two(count: int) -> int:
    """Returns the largest power of two up to the count, as clustered attention rounds it."""
    return 1 << count.bit_length() - 1


def _squares(x: Tensor) -> Tensor:
    """Returns ‖x‖² of every head, float64 [H]."""
    return x.double().square().sum((0, 2, 3)).cpu()
