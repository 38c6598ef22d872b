"""The methods by their names, and what each takes."""

from __future__ import annotations

from torch import Tensor

from nystromer.mil.maps.attention import attention, rollout
from nystromer.mil.maps.evidence import Evidence
from nystromer.mil.maps.gradients import gradient, integrated_gradients
from nystromer.mil.maps.single import single
from nystromer.mil.models import ABMIL, Model, TransMIL

SIGNED = ("single", "gradient", "ig")  # these say what speaks against the class, too
METHODS = (*SIGNED, "attention", "rollout")
DEFAULT = "single"


def explain(
    model: Model,
    features: Tensor,
    evidence: Evidence,
    *,
    method: str = DEFAULT,
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
    check_method(model, method)
    for name, number, users in (
        ("layer", layer, ("attention",)),
        ("head", head, ("attention", "rollout")),
    ):
        if number is not None and method not in users:
            raise ValueError(f"`--{name}` is of {' and '.join(users)}, got it beside {method}.")
    if method == "attention" and isinstance(model, (TransMIL, ABMIL)):
        return attention(model, features, layer, head).float()
    if method == "rollout" and isinstance(model, TransMIL):
        return rollout(model, features, head).float()
    by = {"single": single, "gradient": gradient, "ig": integrated_gradients}[method]
    return by(model, features, evidence).float()


def refusal(model: Model, method: str) -> str | None:
    """Returns why a model has not what a method needs, or None if it has."""
    try:
        check_method(model, method)
    except ValueError as error:
        return str(error)
    return None


def check_method(model: Model, method: str) -> None:
    """Checks that there is such a method, and that the model has what it needs.

    Raises:
        ValueError: If not.
    """
    if method not in METHODS:
        raise ValueError(f"`--method` must be one of {', '.join(METHODS)}, got {method!r}.")
    needs = {"attention": (TransMIL, ABMIL), "rollout": (TransMIL,)}.get(method)
    if needs is not None and not isinstance(model, needs):
        raise ValueError(
            f"{type(model).__name__} has no {method} between patches; use --method single."
        )
