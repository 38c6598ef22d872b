"""Counts what a layer's attention costs at N tokens: keys, seconds or multiplications.

A layer whose heads differ costs their mean: an exact head's share of an exact layer and so on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nystromer.diagnostics import cost
from nystromer.hf.conversion.attend import KMEANS_STEPS, attend
from nystromer.hf.conversion.plan import LayerChoice

ROUNDS = 5


def mixed(choice: LayerChoice, n: int, near: float, exact: float) -> float:
    """Returns the cost of a layer whose heads cost `near`, or `exact` where they are exact at n."""
    if choice.attention == "exact" or n < choice.exact_below:
        return exact
    share = len(choice.exact_heads) / (choice.num_heads or 1)
    return share * exact + (1 - share) * near


def keys(choice: LayerChoice, n: int) -> float:
    """Returns the scores that a query costs, see `LayerChoice.keys`; an exact head costs n."""
    return mixed(choice, n, choice.keys, n)


def exact_share(choice: LayerChoice) -> float:
    """Returns the share of the layer's heads that are exact."""
    return 1.0 if choice.attention == "exact" else len(choice.exact_heads) / (choice.num_heads or 1)


def multiplications(choice: LayerChoice, n: int, head_dim: int) -> float:
    """Returns the multiplications of one head.

    Nyström: those of `diagnostics.cost`, and k-means and the convolution on top. Clustered: the
    scores and values of its keys, and each token's projection on the directions of both
    clusterings.
    """
    exact = 2.0 * n * n * head_dim
    if choice.attention == "clustered":
        projected = choice.num_query_clusters + choice.num_key_clusters
        return mixed(choice, n, n * head_dim * (2 * choice.keys + projected), exact)
    price = cost(n, n, choice.num_landmarks, head_dim=head_dim)
    near = price.multiplications + n * head_dim * (choice.conv_kernel_size or 0)
    if choice.landmarks == "kmeans":
        near += KMEANS_STEPS * n * choice.num_landmarks * 2 * head_dim
    return mixed(choice, n, near, exact)


class Clock:
    """Measures how many seconds a layer's attention takes on this machine.

    It is the forward of one sequence of n random tokens.

    All choices run in turn, so that what else the machine does falls on each alike; the median of
    the rounds counts.

    Args:
        choices: What will be asked for, up to names, taps and exact heads.
    """

    def __init__(
        self,
        choices: Iterable[LayerChoice],
        n: int,
        head_dim: int,
        device: torch.device | None = None,
    ) -> None:
        self.n = n
        kinds = list(
            dict.fromkeys(_kind(x) for choice in choices for x in (choice, _exact(choice)))
        )
        runs = [_run(kind, n, head_dim, device) for kind in kinds]
        times = [[_seconds(run) for run in runs] for _ in range(ROUNDS + 1)][1:]
        columns = zip(*times, strict=True)
        self.seconds = dict(zip(kinds, map(statistics.median, columns), strict=True))

    def __call__(self, choice: LayerChoice) -> float:
        near, exact = (self.seconds[_kind(x)] for x in (choice, _exact(choice)))
        return mixed(choice, self.n, near, exact)


def _exact(choice: LayerChoice) -> LayerChoice:
    return LayerChoice("", "exact", num_heads=choice.num_heads)


def _kind(choice: LayerChoice) -> LayerChoice:
    if choice.attention == "exact":
        return _exact(choice)
    return replace(choice, name="", conv_taps=None, exact_heads=(), note=None)


def _run(kind: LayerChoice, n: int, head_dim: int, device: torch.device | None) -> Callable:
    heads = kind.num_heads or 1
    q, k, v = torch.randn(3, 1, heads, n, head_dim, device=device)
    taps = None
    if kind.conv_kernel_size is not None:
        taps = torch.randn(heads, kind.conv_kernel_size, device=device)
    asked = replace(kind, min_length=n + 1) if kind.attention == "exact" else kind
    return lambda: attend(asked, q, k, v, None, None, taps)


@torch.no_grad()
def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    output: Tensor = run()
    if output.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
