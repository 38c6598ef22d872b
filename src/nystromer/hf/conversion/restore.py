"""Gives the layers of a model what the plan in its config says: when nystromize converts it, and
when from_pretrained builds it again. Here the methods of PreTrainedModel are extended for that."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nystromer.hf.conversion.interface import CHOICE, CONV, NAME
from nystromer.hf.conversion.layers import base_name
from nystromer.hf.conversion.plan import Plan
from nystromer.hf.inner import transformers_model
from nystromer.hf.positions import refuse_longer_inputs

DROPOUTS = ("dropout", "dropout_p", "dropout_prob", "attention_dropout")


def plan_of(model: nn.Module) -> Plan:
    """Returns the plan that `nystromize` made for this model, or for the one that it holds.

    Raises:
        TypeError: If it is no transformers model, and holds none or several.
        ValueError: If the model was not converted.
    """
    model = transformers_model(model)
    data = getattr(model.config, NAME, None)
    if data is None:
        raise ValueError(f"{type(model).__name__} has no plan; convert it with nystromize first.")
    return Plan.from_dict(data)


def attach(model: PreTrainedModel, *, only_new: bool = False) -> None:
    """Gives every layer that `model.config.nystrom` names its choice, and its taps if it has any.

    Taps of the right shape keep their numbers, others start at zero; with `only_new` a layer that
    has a choice keeps it, with its taps. Nothing happens if a layer is missing: then the model is a
    part of the one that the plan is for, and not built to its end.
    """
    plan = plan_of(model)
    modules = {base_name(model, name): module for name, module in model.named_modules()}
    if not all(choice.name in modules for choice in plan.layers):
        return
    for choice in plan.layers:
        module = modules[choice.name]
        if only_new and hasattr(module, CHOICE):
            continue
        setattr(module, CHOICE, choice)
        if choice.attention != "exact" and model.config._attn_implementation == NAME:
            _without_dropout(module)
        shape = (choice.num_heads or 1, choice.conv_kernel_size or 0)
        if choice.attention == "exact" or choice.conv_kernel_size is None:
            module.register_parameter(CONV, None)
        elif getattr(getattr(module, CONV, None), "shape", None) != shape:
            module.register_parameter(CONV, nn.Parameter(_zeros(shape, module, model)))
    refuse_longer_inputs(model)


def _zeros(shape: tuple[int, int], module: nn.Module, model: nn.Module) -> Tensor:
    """Makes zeros of the dtype and on the device of the layer's own numbers.

    A quantised layer may hold integers alone; then the model's other numbers tell. Where they are
    offloaded (on the device "meta"), the zeros are real all the same.
    """
    own = [*module.parameters(), *module.buffers(), *model.parameters(), *model.buffers()]
    floats = [x for x in own if x.is_floating_point() and x.dtype.itemsize > 1]  # no float8
    like = floats[0] if floats else torch.empty(0)
    return torch.zeros(shape, dtype=like.dtype, device=None if like.is_meta else like.device)


def _without_dropout(module: nn.Module) -> None:
    """Sets a layer's attention dropout to 0, in each attribute where transformers may read it."""
    for name in DROPOUTS:
        dropout = getattr(module, name, None)
        if isinstance(dropout, nn.Dropout):
            dropout.p = 0.0
        elif isinstance(dropout, float):
            setattr(module, name, 0.0)


def _attach_if_planned(model: PreTrainedModel) -> None:
    """Attaches the plan of a model that was just built; parts of it may have been used before."""
    if getattr(model.config, NAME, None) is not None:
        attach(model, only_new=True)


def _say_implementation(model: PreTrainedModel) -> None:
    """Writes the implementation into each config that has a plan, and so into config.json, where
    from_pretrained reads it."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, NAME, None) is not None:
            config.attn_implementation = config._attn_implementation


def _start_missing_taps_at_zero(model: PreTrainedModel) -> None:
    """Zeroes the taps that a file held no numbers for: transformers leaves them as torch.empty made
    them. What it has read it marks, so this is right in from_pretrained and nowhere else."""
    for module in model.modules():
        taps = getattr(module, CONV, None)
        if taps is not None and not getattr(taps, "_is_hf_initialized", False):
            with torch.no_grad():
                taps.zero_()


def _first(step: Callable[[PreTrainedModel], None], method: str) -> None:
    """Has all models take a step before one of their methods.

    transformers has no hook that from_pretrained calls between building a model and loading its
    weights, nor one for parameters that it missed. All steps pass by models without a plan.
    """
    original = getattr(PreTrainedModel, method)

    @functools.wraps(original)
    def extended(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        step(self)
        return original(self, *args, **kwargs)

    setattr(PreTrainedModel, method, extended)


def _nystrom_by_default() -> None:
    """Has a model run its plan unless another implementation is asked for. transformers forgets the
    one in the config of a part, say of the encoder in an EncoderDecoderModel."""
    method = "get_correct_attn_implementation"
    original = getattr(PreTrainedModel, method)

    @functools.wraps(original)
    def extended(self: PreTrainedModel, requested: str | None, *args: Any, **kwargs: Any) -> str:
        if requested is None and getattr(self.config, NAME, None) is not None:
            requested = NAME
        implementation: str = original(self, requested, *args, **kwargs)
        return implementation

    setattr(PreTrainedModel, method, extended)


_first(_attach_if_planned, "post_init")
_first(_start_missing_taps_at_zero, "_initialize_missing_keys")
_first(_say_implementation, "save_pretrained")
_nystrom_by_default()
