"""`nystromize`: puts another attention into an encoder that exists, through transformers'
attention interface."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nystromer.hf.conversion.interface import CONV, NAME
from nystromer.hf.conversion.layers import FoundLayer, attention_layers, base_name
from nystromer.hf.conversion.plan import NAMES, OPTIONS, LayerChoice, Plan
from nystromer.hf.conversion.restore import attach
from nystromer.hf.inner import transformers_model

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


def nystromize(
    model: Model,
    num_landmarks: int = 64,
    *,
    method: str = "nystrom",
    num_query_clusters: int = 64,
    num_key_clusters: int = 16,
    num_exact_keys: int = 48,
    layers: Sequence[int] | None = None,
    min_length: int | None = None,
    conv_kernel_size: int | None = None,
    strict: bool = True,
    plan: Plan | None = None,
    example: Mapping[str, Tensor] | None = None,
) -> Model:
    """Replaces softmax attention in the encoder by Nyström or clustered attention, in place.

    The choice is kept in `model.config`, is saved with the model, and comes back with
    `from_pretrained` wherever `nystromer.hf` has been imported. Sequences of fewer than
    `min_length` real tokens keep exact attention, each for itself, so batching changes nothing.
    The attention dropout of converted layers is set to 0.

    Args:
        model: Any transformers model whose attention goes through `AttentionInterface`, or a module
            that holds one, as a SentenceTransformer does.
        num_landmarks: M of Nyström attention.
        method: "nystrom" or "clustered"; neither ever becomes the other.
        num_query_clusters, num_key_clusters, num_exact_keys: Of clustered attention, see
            `nystromer.clustered_attention`.
        layers: Which of its attention layers, counted from 0 in the order they are called; the
            others stay exact. None means all.
        min_length: Real tokens; None means 4 M, or 2 (G + M + T) for clustered attention.
        conv_kernel_size: Adds a depthwise convolution over values to every Nyström layer, a
            parameter [H, K] that starts at zero: something for a short training to use.
        strict: Whether a layer that cannot be converted is an error; if not it stays exact, and
            a line says so.
        plan: A choice for every layer; then the options above but `strict` are not looked at.
        example: Inputs for one call of the model, which shows its attention layers; made up if
            None.

    Returns:
        The model.

    Raises:
        TypeError: If model is no transformers model, and holds none or several.
        ValueError: If it ignores the interface, a layer cannot be converted (strict), a layer
            number does not exist, an option is the other method's, or the plan was made for another
            model.
    """
    encoder = transformers_model(model)
    choice = choice_of(
        method,
        num_landmarks,
        num_query_clusters,
        num_key_clusters,
        num_exact_keys,
        min_length=min_length,
        conv_kernel_size=conv_kernel_size,
    )
    found = attention_layers(encoder, example)
    if plan is None:
        choices = _uniform(choice, found, _numbers(layers, len(found)))
    else:
        _check_plan(plan, encoder, found)
        by_name = {choice.name: choice for choice in plan.layers}
        choices = [replace(by_name[x.name], num_heads=x.num_heads) for x in found]
    choices = _without_refused(encoder, choices, found, strict)
    _own_config(encoder)
    for module in encoder.modules():  # a plan for a part of the model is over
        if getattr(getattr(module, "config", None), NAME, None) is not None:
            delattr(module.config, NAME)
    kept = tuple(replace(choice, conv_taps=None) for choice in choices)  # they become weights
    encoder.config.nystrom = Plan(encoder.config.model_type, kept).to_dict()
    encoder.set_attn_implementation(NAME)
    attach(encoder)
    _set_taps(encoder, choices)
    _say(encoder, choices)
    return model


def choice_of(
    method: str,
    num_landmarks: int = 64,
    num_query_clusters: int = 64,
    num_key_clusters: int = 16,
    num_exact_keys: int = 48,
    **options: Any,
) -> LayerChoice:
    """Returns a choice that is the same for every layer, still without a layer's name.

    Raises:
        ValueError: If there is no such method, or an option is the other method's.
    """
    if method not in OPTIONS:
        known = " or ".join(map(repr, OPTIONS))
        raise ValueError(f"`method` must be {known}, got {method!r}.")
    return LayerChoice(
        "",
        method,
        num_landmarks,
        num_query_clusters=num_query_clusters,
        num_key_clusters=num_key_clusters,
        num_exact_keys=num_exact_keys,
        **options,
    )


def uniform_plan(model: PreTrainedModel, choice: LayerChoice) -> Plan:
    """Returns a plan with this choice in every attention layer of the model."""
    found = attention_layers(model)
    return Plan(model.config.model_type, tuple(_uniform(choice, found, _numbers(None, len(found)))))


def _uniform(
    choice: LayerChoice, found: Sequence[FoundLayer], chosen: set[int]
) -> list[LayerChoice]:
    return [
        replace(choice, name=layer.name, num_heads=layer.num_heads)
        if i in chosen
        else LayerChoice(layer.name, "exact", num_heads=layer.num_heads)
        for i, layer in enumerate(found)
    ]


def _without_refused(
    model: PreTrainedModel,
    choices: Sequence[LayerChoice],
    found: Sequence[FoundLayer],
    strict: bool,
) -> list[LayerChoice]:
    """Returns the choices, changed to exact attention in layers where nothing else is possible.

    Raises:
        ValueError: If there is such a layer and `strict` is set.
    """
    pairs = list(zip(choices, found, strict=True))
    refused = [(c, x) for c, x in pairs if x.reason is not None and c.attention != "exact"]
    if refused and strict:
        methods = " or ".join(dict.fromkeys(NAMES[c.attention] for c, _ in refused))
        listed = "; ".join(f"{layer.name}: {layer.reason}" for _, layer in refused[:3])
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        raise ValueError(
            f"{methods.capitalize()} attention is impossible in {len(refused)} of {len(found)} "
            f"layers of {type(model).__name__}: {listed}{more}. Leave them out of `layers`, or "
            "write strict=False to keep them exact."
        )
    return [
        LayerChoice(c.name, "exact", num_heads=c.num_heads, note=layer.reason)
        if (c, layer) in refused
        else c
        for c, layer in pairs
    ]


def _set_taps(model: PreTrainedModel, choices: Sequence[LayerChoice]) -> None:
    modules = {base_name(model, name): module for name, module in model.named_modules()}
    for choice in choices:
        if choice.conv_taps is not None:
            parameter = getattr(modules[choice.name], CONV)
            with torch.no_grad():
                parameter.copy_(torch.tensor(choice.conv_taps))


def _own_config(model: PreTrainedModel) -> None:
    """Gives the model a config of its own, and its layers the same one.

    transformers shares one between an encoder and its decoder, and users share one between models;
    EncoderDecoderModel gives its encoder another one than the layers have, of the same content.
    """
    memo: dict[int, Any] = {}
    copy.deepcopy(model.config, memo)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = memo.get(id(module.config), module.config)
    for part in [module for module in model.modules() if isinstance(module, PreTrainedModel)]:
        content = part.config.to_dict()
        layer: Any
        for layer in part.modules():
            config = getattr(layer, "config", None)
            if type(config) is type(part.config) and config.to_dict() == content:
                layer.config = part.config


def _numbers(layers: Sequence[int] | None, count: int) -> set[int]:
    if layers is None:
        return set(range(count))
    wrong = [i for i in layers if not isinstance(i, int) or not 0 <= i < count]
    if wrong:
        raise ValueError(
            f"`layers` must be numbers in 0 ... {count - 1}, got {wrong[0]!r}; the model has "
            f"{count} attention layers."
        )
    return set(layers)


def _check_plan(plan: Plan, model: PreTrainedModel, found: Sequence[FoundLayer]) -> None:
    names = [layer.name for layer in found]
    heads = {layer.name: layer.num_heads for layer in found}
    planned = {
        c.name: heads.get(c.name) if c.num_heads is None else c.num_heads for c in plan.layers
    }
    if plan.model_type != model.config.model_type or planned != heads:
        raise ValueError(
            f"`plan` was made for another model: a {plan.model_type} with {len(plan.layers)} "
            f"attention layers, got a {model.config.model_type} with {len(names)} "
            f"of {found[0].num_heads} heads ({names[0]} ... {names[-1]}); make one for this model."
        )


def _say(model: PreTrainedModel, choices: Sequence[LayerChoice]) -> None:
    """Logs one line that says what was converted, and what was not."""
    counts = Counter(NAMES[c.attention] for c in choices if c.attention != "exact")
    converted = " and ".join(f"{name} attention in {n}" for name, n in counts.items())
    kept = "".join(f"; exact: {c.name}, {c.note}" for c in choices if c.note is not None)
    logger.warning(
        "%s: %s of %d layers, their attention dropout is 0 from now on%s.",
        type(model).__name__,
        converted or "another attention in 0",
        len(choices),
        kept,
    )
