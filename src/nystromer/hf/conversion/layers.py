"""Finds the attention layers of a model by running it, not by knowing its family."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nystromer.hf.conversion.example_inputs import example_inputs
from nystromer.hf.conversion.interface import exact_attention_forward, refusal, register

INTERCEPTING = threading.RLock()  # one name of the registry serves the whole process


@dataclass(frozen=True)
class FoundLayer:
    """Names an attention module that a model calls through transformers' interface."""

    name: str
    num_heads: int
    reason: str | None  # why it cannot be Nyström


def attention_layers(
    model: PreTrainedModel, example: Mapping[str, Tensor] | None = None
) -> list[FoundLayer]:
    """Returns the attention layers that the model calls when it runs on `example`, in that order.

    Raises:
        ValueError: If none of them goes through transformers' attention interface, no example can
            be made up, or the model is a Nyströmformer.
    """
    if model.config.model_type == "nystromformer":
        raise ValueError(
            f"{type(model).__name__} has Nyström attention already, so there is nothing to "
            "convert; set num_landmarks or exact_attention in its config."
        )
    found: dict[nn.Module, FoundLayer] = {}
    names = {module: name for name, module in model.named_modules()}

    def record(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        reason = refusal(module, query, key, args[1], **kwargs)
        layer = FoundLayer(base_name(model, names[module]), query.shape[1], reason)
        found.setdefault(module, layer)
        return exact_attention_forward(module, query, key, *args, **kwargs)

    with intercepted(model, record), evaluating(model), torch.no_grad():
        try:
            model(**(example_inputs(model) if example is None else example))
        except Exception as error:
            if example is not None:
                raise
            raise ValueError(
                f"{type(model).__name__} could not be tried on inputs made up from its config "
                f"({error}); pass a batch of its inputs as example={{...}}."
            ) from error
    if not found:
        raise ValueError(
            f"{type(model).__name__} ignores transformers' attention interface, so its attention "
            "cannot be replaced; models that follow it accept attn_implementation='sdpa'."
        )
    return list(found.values())


@contextmanager
def intercepted(model: PreTrainedModel, function: Callable) -> Iterator[None]:
    """Has the model's attention layers call `function`, as transformers would call "sdpa".

    Masks arrive as `nystrom_mask` makes them.
    """
    configs: dict[int, Any] = {
        id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None
    }
    before = [(config, config._attn_implementation) for config in configs.values()]
    with INTERCEPTING:
        register("nystrom_intercepted", function)
        try:
            model.set_attn_implementation("nystrom_intercepted")
            for config in _of_layers_alone(model, configs):
                config._attn_implementation_internal = "nystrom_intercepted"
            yield
        finally:
            for config, implementation in before:
                config._attn_implementation_internal = implementation


def _of_layers_alone(model: PreTrainedModel, configs: Mapping[int, Any]) -> list[Any]:
    """Returns the configs that layers have and no model does: EncoderDecoderModel gives its encoder
    another config than the encoder's layers were built with."""
    of_models = {id(m.config) for m in model.modules() if isinstance(m, PreTrainedModel)}
    return [config for key, config in configs.items() if key not in of_models]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode; afterwards every part is in the mode it was in."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def base_name(model: PreTrainedModel, name: str) -> str:
    """Returns a module's name in the base model, the same with and without a head on it."""
    return name.removeprefix(f"{model.base_model_prefix}.")
