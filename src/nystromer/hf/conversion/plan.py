"""Says what each attention layer of a converted encoder does, as plain data and readable JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nystromer.checks import check_kernel_size, check_positive

NAMES = {"nystrom": "Nyström", "clustered": "clustered", "exact": "exact"}
OPTIONS = {  # what belongs to one attention alone
    "nystrom": ("num_landmarks", "landmarks", "ridge", "conv_kernel_size", "conv_taps"),
    "clustered": ("num_query_clusters", "num_key_clusters", "num_exact_keys"),
}
LANDMARKS = ("segment_means", "kmeans")


@dataclass(frozen=True)
class LayerChoice:
    """Says which attention one layer has, and how it is computed.

    Args:
        name: Its module's name in the base model ("encoder.layer.0.attention.self").
        attention: "nystrom", "clustered" or "exact".
        num_landmarks: M.
        min_length: Sequences with fewer real tokens keep exact attention; None means twice `keys`
            (4 M for Nyström), below which too little is saved to pay for the error.
        landmarks: "segment_means", or "kmeans" over each token's query and key together.
        ridge: None for the six steps of eq. 14, else (AᵀA + ridge I)⁻¹ Aᵀ in their place.
        num_query_clusters, num_key_clusters, num_exact_keys: Of clustered attention.
        exact_heads: Heads that keep exact attention in a layer that is not exact.
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
    num_query_clusters: int = 64
    num_key_clusters: int = 16
    num_exact_keys: int = 48
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
        if self.attention not in NAMES:
            known = ", ".join(map(repr, NAMES))
            raise ValueError(f"`attention` must be one of {known}, got {self.attention!r}.")
        if self.landmarks not in LANDMARKS:
            known = ", ".join(map(repr, LANDMARKS))
            raise ValueError(f"`landmarks` must be one of {known}, got {self.landmarks!r}.")
        _check_options(self)
        for name in ("num_landmarks", *OPTIONS["clustered"]):
            check_positive(name, getattr(self, name))
        if self.min_length is not None:
            check_positive("min_length", self.min_length)
        if self.ridge is not None and not self.ridge > 0:
            raise ValueError(f"`ridge` must be above 0, got {self.ridge}; None means six steps.")
        if self.conv_kernel_size is not None:
            check_kernel_size("conv_kernel_size", self.conv_kernel_size)
        if self.conv_taps is not None and {len(x) for x in self.conv_taps} != {
            self.conv_kernel_size
        }:
            raise ValueError(
                f"`conv_taps` must hold conv_kernel_size={self.conv_kernel_size} numbers for each "
                f"head, got {sorted({len(x) for x in self.conv_taps})}."
            )
        if self.conv_taps is not None and len(self.conv_taps) != (
            self.num_heads or len(self.conv_taps)
        ):
            raise ValueError(
                f"`conv_taps` must hold a row for each of the {self.num_heads} heads, got "
                f"{len(self.conv_taps)} rows."
            )
        if any(head < 0 or head >= (self.num_heads or head + 1) for head in self.exact_heads):
            raise ValueError(
                f"`exact_heads` must lie in 0 ... {(self.num_heads or 1) - 1}, got "
                f"{list(self.exact_heads)}."
            )

    @property
    def keys(self) -> int:
        """The scores that a query costs where it is not exact: 2 M for Nyström (its own with the
        landmarks, and its share of the landmarks' with all keys), G + M + T for clustered. Finding
        clusters, k-means, the inverse and a convolution come on top."""
        if self.attention == "clustered":
            return self.num_query_clusters + self.num_key_clusters + self.num_exact_keys
        return 2 * self.num_landmarks

    @property
    def exact_below(self) -> int:
        """The number of real tokens below which a sequence keeps exact attention."""
        return 2 * self.keys if self.min_length is None else self.min_length


@dataclass(frozen=True)
class Plan:
    """Holds the choices for one model, in the order in which it calls its attention layers."""

    model_type: str
    layers: tuple[LayerChoice, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain data, without fields that are None or the default."""
        return {"model_type": self.model_type, "layers": [_shown(x) for x in self.layers]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Returns the plan that such plain data describes.

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
        """Returns the plan as JSON in which a list of numbers stands on one line."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        return re.sub(r"\[[^][{}\"]+\]", lambda x: " ".join(x[0].split()), text)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Returns the plan that this JSON describes.

        Raises:
            ValueError: If it is no JSON, or as `from_dict`.
        """
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"`plan` must be JSON, got text that is not: {error}.") from error


def _check_options(layer: LayerChoice) -> None:
    """Refuses options of the attention that the layer does not have.

    Raises:
        ValueError: If an option of Nyström attention is set for clustered attention, or the other
            way round: neither becomes the other.
    """
    others = {"nystrom": "clustered", "clustered": "nystrom"}.get(layer.attention)
    for field in fields(layer) if others else ():
        value = getattr(layer, field.name)
        if field.name in OPTIONS[str(others)] and value != field.default:
            raise ValueError(
                f"`{field.name}` belongs to {NAMES[str(others)]} attention, got {value} with "
                f"{layer.attention!r}; that has {', '.join(OPTIONS[layer.attention])}."
            )


def _shown(layer: LayerChoice) -> dict[str, Any]:
    values = {f.name: (getattr(layer, f.name), f.default) for f in fields(layer)}
    size = {"nystrom": ("num_landmarks",), "clustered": OPTIONS["clustered"]}
    shown = ("name", "attention", *size.get(layer.attention, ()))
    return {k: value for k, (value, default) in values.items() if k in shown or value != default}
