"""Models of a bag of patches: `model(features [B, N, D], mask)` gives logits [B, classes]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nystromer.mil.models.abmil import ABMIL
from nystromer.mil.models.batch import pad_bags
from nystromer.mil.models.checkpoints import load_transmil
from nystromer.mil.models.pooling import PoolingMIL
from nystromer.mil.models.transmil import TransMIL

Model = TransMIL | ABMIL | PoolingMIL
MODELS: dict[str, Callable[..., Model]] = {
    "transmil": TransMIL,
    "transmil-legacy": partial(TransMIL, mode="legacy"),
    "transmil-exact": partial(TransMIL, mode="exact"),
    "abmil": ABMIL,
    "mean": partial(PoolingMIL, pool="mean"),
    "max": partial(PoolingMIL, pool="max"),
}

__all__ = [
    "ABMIL",
    "MODELS",
    "Model",
    "PoolingMIL",
    "TransMIL",
    "build_model",
    "load_transmil",
    "pad_bags",
]


def build_model(name: str, width: int, num_classes: int, **options: object) -> Model:
    """Returns a new model for features of that width.

    Args:
        name: A key of MODELS.
        width: D, features of a patch.
        num_classes: Logits of a bag.
        options: What else the model's class takes.

    Raises:
        ValueError: If there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"The model must be one of {', '.join(MODELS)}, got {name!r}.")
    return MODELS[name](width, num_classes, **options)
