"""Looks at what the class token reads in one held-out window."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nystromer.recipes.demo.data import Task, Window
from nystromer.recipes.demo.model import Classifier, ExactAttention
from nystromer.recipes.demo.settings import Settings
from nystromer.recipes.demo.twins import Twin

SHADES = 10
PIECES = re.compile(rb"\w+|\s+|[^\w\s]+")  # of bytes: positions stay those of the tokens


@dataclass(frozen=True)
class Sample:
    """Holds a window and the class token's row in the last layer, mean of heads, 1 = uniform, [N].

    Args:
        nystrom: From the Nyström twin.
        same_weights: From the Nyström twin's weights under exact attention.
        exact: From the exact twin, whose weights are others.
    """

    window: Window
    answers: dict[str, str]
    nystrom: np.ndarray
    same_weights: np.ndarray
    exact: np.ndarray

    def agreement(self) -> float:
        """Returns the correlation of the Nyström row with the row it approximates."""
        return float(np.corrcoef(self.nystrom, self.same_weights)[0, 1])


def read_sample(task: Task, twins: dict[str, Twin], settings: Settings) -> Sample:
    """Reads the first held-out window, in a fixed order, that both twins name the package of."""
    labels = np.array([task.packages.index(window.package) for window in task.held_out])
    right = np.all([twin.predictions == labels for twin in twins.values()], axis=0)
    index = int(right.argmax())  # the first of all where there is none
    window = task.held_out[index]
    input_ids = torch.tensor([list(window.text)])
    nystrom = twins["nystrom"].model
    same_weights = Classifier(ExactAttention, len(task.packages), settings).eval()
    same_weights.load_state_dict(nystrom.state_dict())
    return Sample(
        window,
        {name: task.packages[twin.predictions[index]] for name, twin in twins.items()},
        nystrom=_row(nystrom, input_ids),
        same_weights=_row(same_weights, input_ids),
        exact=_row(twins["exact"].model, input_ids),
    )


def shaded_source(text: bytes, row: np.ndarray) -> str:
    """Returns the text as HTML, every word and every gap shaded by the mean weight of its bytes.

    The darkest shade is that of the 98th percentile and above; Nyström's small negative weights are
    left white.
    """
    pieces = [
        (match.group(), row[match.start() : match.end()].mean()) for match in PIECES.finditer(text)
    ]
    top = max(np.quantile([weight for _, weight in pieces], 0.98), 1e-9)
    spans = []
    for piece, weight in pieces:
        shade = int(np.clip(weight / top, 0, 1) * (SHADES - 1) + 0.5)
        written = html.escape(piece.decode("utf-8", "replace"))
        spans.append(f'<span class="a{shade}">{written}</span>' if shade else written)
    return "".join(spans)


def _row(model: Classifier, input_ids: Tensor) -> np.ndarray:
    row = model.class_token_row(input_ids)[0].mean(0)  # [N]
    return (row * len(row)).numpy()
