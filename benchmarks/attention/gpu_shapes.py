"""The sizes that are checked and timed on a GPU, and inputs of these sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """The sizes of one call. masks: None, "right" (lengths from 1 to N) or "holes"."""

    batch: int
    heads: int
    n: int
    dim: int
    m: int
    kernel: int = 0
    value_dim: int | None = None
    masks: str | None = None

    def __str__(self) -> str:
        parts = [f"B{self.batch} H{self.heads} N{self.n} D{self.dim} M{self.m}"]
        parts += [f"Dv{self.value_dim}"] if self.value_dim else []
        parts += [f"K{self.kernel}"] if self.kernel else []
        return " ".join(parts + ([self.masks] if self.masks else []))


CHECKED = [
    Shape(2, 2, 1, 64, 1),
    Shape(2, 2, 63, 16, 1, kernel=3),
    Shape(2, 3, 1000, 64, 64, kernel=33),
    Shape(2, 3, 1000, 20, 13, kernel=65, value_dim=40),
    Shape(2, 2, 111, 128, 100, kernel=7, masks="holes"),
    Shape(5, 2, 300, 64, 32, kernel=33, masks="right"),
    Shape(1, 2, 4099, 96, 256, value_dim=80),
    Shape(1, 2, 2000, 256, 64, kernel=33),
    Shape(1, 1, 2000, 256, 256),
    Shape(1, 2, 20001, 64, 64, kernel=33, masks="holes"),
]
TIMED = [
    Shape(4, 16, 65536, 128, 64),
    Shape(4, 16, 65536, 128, 64, kernel=33),
    Shape(1, 4, 1048576, 64, 32),
    Shape(1, 8, 16384, 64, 256),
    Shape(8, 12, 1024, 64, 64),
]


def inputs(shape: Shape, dtype: str, device: str, seed: int = 0):
    """Returns (query, key, value, taps or None, mask or None), drawn at random."""
    g, as_dtype = torch.Generator(device).manual_seed(seed), getattr(torch, dtype)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device, dtype=torch.float32).to(as_dtype)

    tokens = (shape.batch, shape.heads, shape.n)
    q, k = draw(*tokens, shape.dim), draw(*tokens, shape.dim)
    v = draw(*tokens, shape.value_dim or shape.dim)
    taps = draw(shape.heads, shape.kernel) / 6 if shape.kernel else None
    mask = None
    if shape.masks == "holes":
        mask = torch.rand(shape.batch, shape.n, generator=g, device=device) < 0.7
    elif shape.masks == "right":
        lengths = torch.linspace(1, shape.n, shape.batch, device=device).long()
        mask = torch.arange(shape.n, device=device) < lengths[:, None]
    return q, k, v, taps, mask
