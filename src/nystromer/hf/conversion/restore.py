"""A plan in a config becomes choices on layers: after a conversion, and after from_pretrained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nystromer.hf.conversion.interface import CHOICE, CONV, NAME
from nystromer.hf.conversion.layers import base_name
from nystromer.hf.conversion.plan import Plan
from nystromer.hf.positions import refuse_longer_inputs

DROPOUTS = ("dropout", "dropout_p", "dropout_prob", "attention_dropout")


def plan_of(model: PreTrainedModel) -> Plan:
    """What `nystromize` chose for this model.

    Raises:
        ValueError: If the model was not converted.
    """
    data = getattr(model.config, NAME, None)
    if data is None:
        raise ValueError(f"{type(model).__name__} has no plan; convert it with nystromize first.")
    return Plan.from_dict(data)


def attach(model: PreTrainedModel) -> bool:
    """Gives every layer that `model.config.nystrom` names its choice; False if one is missing."""
    plan = plan_of(model)
    modules = {base_name(model, name): module for name, module in model.named_modules()}
    if not all(choice.name in modules for choice in plan.layers):
        return False
    for choice in plan.layers:
        module = modules[choice.name]
        setattr(module, CHOICE, choice)
        if choice.attention == "exact":
            module.register_parameter(CONV, None)
            continue
        if model.config._attn_implementation == NAME:
            _without_dropout(module)
        kernel = choice.conv_kernel_size
        if kernel is None:
            module.register_parameter(CONV, None)
        elif getattr(getattr(module, CONV, None), "shape", None) != (choice.num_heads, kernel):
            like = next(module.parameters())
            module.register_parameter(
                CONV, nn.Parameter(like.new_zeros(choice.num_heads or 1, kernel))
            )
    refuse_longer_inputs(model)
    return True


def _without_dropout(module: nn.Module) -> None:
    """transformers reads the attention's p from one of these attributes."""
    for name in DROPOUTS:
        dropout = getattr(module, name, None)
        if isinstance(dropout, nn.Dropout):
            dropout.p = 0.0
        elif isinstance(dropout, float):
            setattr(module, name, 0.0)


def _attach_if_planned(model: PreTrainedModel) -> None:
    if getattr(model.config, NAME, None) is not None:
        attach(model)


def _say_implementation(model: PreTrainedModel) -> None:
    """In config.json, for from_pretrained."""
    if getattr(model.config, NAME, None) is not None:
        model.config.attn_implementation = model.config._attn_implementation


def _start_missing_taps_at_zero(model: PreTrainedModel) -> None:
    """Weights that were saved without the convolution leave it as torch.empty made it."""
    for module in model.modules():
        taps = getattr(module, CONV, None)
        if taps is not None and not getattr(taps, "_is_hf_initialized", False):
            nn.init.zeros_(taps)


def _first(step: Callable[[PreTrainedModel], None], method: str) -> None:
    """Takes a step before a method of all models. transformers has no hook that from_pretrained
    calls between building a model and loading its weights, nor one for parameters that it missed;
    all steps pass by models without a plan."""
    original = getattr(PreTrainedModel, method)

    @functools.wraps(original)
    def extended(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        step(self)
        return original(self, *args, **kwargs)

    setattr(PreTrainedModel, method, extended)


_first(_attach_if_planned, "post_init")
_first(_start_missing_taps_at_zero, "initialize_weights")
_first(_say_implementation, "save_pretrained")
