"""Makes up inputs for one call of a model, from its config."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def example_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns a batch that the model accepts: tokens, an image, a video, a waveform, a spectrogram.

    Raises:
        ValueError: If its main input is none of them.
    """
    config, name = model.config, model.main_input_name
    if name == "input_ids":
        inputs = dict(model.dummy_inputs)
    elif name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        inputs = {name: torch.zeros(1, *_frames(vision), vision.num_channels, *_sides(vision))}
    elif name == "input_values" and hasattr(config, "num_mel_bins"):
        inputs = {name: torch.zeros(1, config.max_length, config.num_mel_bins)}
    elif name == "input_values":
        inputs = {name: torch.randn(1, 16000)}
    elif name == "input_features" and hasattr(config, "max_source_positions"):
        inputs = {name: torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)}
    else:
        raise ValueError(f"its main input is {name}")
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs.setdefault("decoder_input_ids", torch.ones(len(inputs[name]), 5, dtype=torch.long))
    device = "cpu" if model.device.type == "meta" else model.device  # meta: offloaded
    return {
        key: x.to(device, model.dtype if x.is_floating_point() else x.dtype)
        for key, x in inputs.items()
    }


def _frames(config: Any) -> tuple[int, ...]:
    return (config.num_frames,) if hasattr(config, "num_frames") else ()


def _sides(config: Any) -> tuple[int, int]:
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)
