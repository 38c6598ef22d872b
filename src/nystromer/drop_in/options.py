"""The options of one conversion, and how a layer keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from nystromer.checks import check_kernel_size, check_positive

CONV = "nystrom_conv"  # the name of the parameter


@dataclass(frozen=True)
class Options:
    """What `nystromize` was asked for.

    Raises:
        TypeError, ValueError: If a number is no int or below 1, or conv_kernel_size is even.
    """

    num_landmarks: int = 64
    min_length: int | None = None
    conv_kernel_size: int | None = None

    def __post_init__(self) -> None:
        check_positive("num_landmarks", self.num_landmarks)
        if self.min_length is not None:
            check_positive("min_length", self.min_length)
        if self.conv_kernel_size is not None:
            check_kernel_size("conv_kernel_size", self.conv_kernel_size)

    def give(self, layer: Any) -> None:
        """Sets the options on a layer; a convolution [H, K] starts at zero, or stays if it is there
        with this K already."""
        layer.num_landmarks = self.num_landmarks
        layer.exact_below = 4 * self.num_landmarks if self.min_length is None else self.min_length
        kernel = self.conv_kernel_size
        if kernel is None:
            layer.register_parameter(CONV, None)
        elif getattr(getattr(layer, CONV, None), "shape", None) != (layer.num_heads, kernel):
            like = next(x for x in layer.parameters() if x.is_floating_point())
            layer.register_parameter(CONV, nn.Parameter(like.new_zeros(layer.num_heads, kernel)))
