"""What each attention layer of a converted encoder does: plain data, readable JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nystromer.checks import check_positive

ATTENTIONS = ("nystrom", "exact")
LANDMARKS = ("segment_means", "kmeans")


@dataclass(frozen=True)
class LayerChoice:
    """One attention layer.

    Args:
        name: Its module's name in the base model ("encoder.layer.0.attention.self").
        attention: "nystrom" or "exact".
        num_landmarks: M.
        min_length: Sequences with fewer real tokens keep exact attention; None means 4 M, below
            which Nyström attention saves too little to pay for its error.
        landmarks: "segment_means", or "kmeans" over each token's query and key together.
        ridge: None for the six steps of eq. 14, else (AᵀA + ridge I)⁻¹ Aᵀ in their place.
        exact_heads: Heads that keep exact attention in a Nyström layer.
        conv_kernel_size: Odd taps of a depthwise convolution over values, a new parameter that
            starts at `conv_taps`, or at zero; None leaves it out.
        conv_taps: [H][K], what `calibrate` fitted.
        num_heads: H, known once a model has been seen.
        note: Why the layer is exact, where somebody decided.
    """

    name: str
    attention: str = "nystrom"
    num_landmarks: int = 64
    min_length: int | None = None
    landmarks: str = "segment_means"
    ridge: float | None = None
    exact_heads: tuple[int, ...] = ()
    conv_kernel_size: int | None = None
    conv_taps: tuple[tuple[float, ...], ...] | None = None
    num_heads: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        # JSON has lists
        object.__setattr__(self, "exact_heads", tuple(self.exact_heads))
        if self.conv_taps is not None:
            object.__setattr__(self, "conv_taps", tuple(map(tuple, self.conv_taps)))
        if self.attention not in ATTENTIONS:
            known = ", ".join(map(repr, ATTENTIONS))
            raise ValueError(f"`attention` must be one of {known}, got {self.attention!r}.")
        if self.landmarks not in LANDMARKS:
            known = ", ".join(map(repr, LANDMARKS))
            raise ValueError(f"`landmarks` must be one of {known}, got {self.landmarks!r}.")
        check_positive("num_landmarks", self.num_landmarks)
        if self.min_length is not None:
            check_positive("min_length", self.min_length)
        if self.ridge is not None and not self.ridge > 0:
            raise ValueError(f"`ridge` must be above 0, got {self.ridge}; None means six steps.")
        if self.conv_kernel_size is not None:
            check_positive("conv_kernel_size", self.conv_kernel_size)
            if self.conv_kernel_size % 2 == 0:
                raise ValueError(
                    f"`conv_kernel_size` must be odd, got {self.conv_kernel_size}; an odd kernel "
                    "stays centred on its token."
                )
        if self.conv_taps is not None and {len(x) for x in self.conv_taps} != {
            self.conv_kernel_size
        }:
            raise ValueError(
                f"`conv_taps` must hold conv_kernel_size={self.conv_kernel_size} numbers for each "
                f"head, got {sorted({len(x) for x in self.conv_taps})}."
            )
        if any(head < 0 or head >= (self.num_heads or head + 1) for head in self.exact_heads):
            raise ValueError(
                f"`exact_heads` must lie in 0 ... {(self.num_heads or 1) - 1}, got "
                f"{list(self.exact_heads)}."
            )

    @property
    def exact_below(self) -> int:
        """Real tokens below which a sequence keeps exact attention."""
        return 4 * self.num_landmarks if self.min_length is None else self.min_length


@dataclass(frozen=True)
class Plan:
    """The choices for one model, in the order in which it calls its attention layers."""

    model_type: str
    layers: tuple[LayerChoice, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is None or the default of `LayerChoice` is left out."""
        return {"model_type": self.model_type, "layers": [_shown(x) for x in self.layers]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """
        Raises:
            ValueError: If a field is missing, unknown or out of range.
        """
        try:
            return cls(data["model_type"], tuple(LayerChoice(**x) for x in data["layers"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"`plan` must hold model_type and layers (each a name and LayerChoice's fields), "
                f"got something else: {error}."
            ) from error

    def to_json(self) -> str:
        """Readable: a list of numbers stands on one line."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        return re.sub(r"\[[^][{}\"]+\]", lambda x: " ".join(x[0].split()), text)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"`plan` must be JSON, got text that is not: {error}.") from error


def _shown(layer: LayerChoice) -> dict[str, Any]:
    values = {f.name: (getattr(layer, f.name), f.default) for f in fields(layer)}
    shown = ("name", "attention", "num_landmarks") if layer.attention == "nystrom" else ("name",)
    return {k: value for k, (value, default) in values.items() if k in shown or value != default}
