"""The methods by their names, and what each takes."""

from __future__ import annotations

from torch import Tensor

from nystromer.mil.maps.attention import attention, rollout
from nystromer.mil.maps.evidence import Evidence
from nystromer.mil.maps.gradients import gradient, integrated_gradients
from nystromer.mil.maps.single import single
from nystromer.mil.models import Model

SIGNED = ("single", "gradient", "ig")  # these say what speaks against the class, too
METHODS = (*SIGNED, "attention", "rollout")


def explain(
    model: Model,
    features: Tensor,
    evidence: Evidence,
    *,
    method: str = "single",
    layer: int | None = None,
    head: int | None = None,
) -> Tensor:
    """Returns a number for every patch of a bag, float32 [N]: the higher, the more it speaks for
    what is explained; of `attention` and `rollout`, the more of it was read.

    Args:
        model: Of nystromer.mil.models, in eval mode.
        features: [N, D], of any dtype.
        evidence: What is explained, `for_class(1)` for example.
        method: One of METHODS.
        layer: Of `attention`, from 1; the last if None.
        head: Of `attention` and `rollout`, from 1; the mean of all if None.

    Raises:
        ValueError: If the model has not what the method needs.

    Example:
        >>> import torch
        >>> from nystromer.mil import build_model
        >>> from nystromer.mil.maps import for_class
        >>> model = build_model("transmil", width=384, num_classes=2).eval()
        >>> explain(model, torch.randn(1000, 384), for_class(1), method="rollout").shape
        torch.Size([1000])
    """
    if method not in METHODS:
        raise ValueError(f"`--method` must be one of {', '.join(METHODS)}, got {method!r}.")
    for name, number, users in (
        ("layer", layer, ("attention",)),
        ("head", head, ("attention", "rollout")),
    ):
        if number is not None and method not in users:
            raise ValueError(f"`--{name}` is of {' and '.join(users)}, got it beside {method}.")
    if method == "attention":
        return attention(model, features, layer, head).float()
    if method == "rollout":
        return rollout(model, features, head).float()
    by = {"single": single, "gradient": gradient, "ig": integrated_gradients}[method]
    return by(model, features, evidence).float()
