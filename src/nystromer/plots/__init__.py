"""Draws what `diagnostics` and `bench` measure; save a figure with `.savefig(path)`."""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as _error:
    raise ImportError("Figures need matplotlib: pip install nystromer[plots].") from _error

from nystromer.plots.errors import error_figure, residual_figure, spectrum_figure
from nystromer.plots.lengths import Panel, lengths_figure, scaling_figure, scaling_panels
from nystromer.plots.maps import factors_figure, maps_figure
from nystromer.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    colour_bar,
    grid,
    label,
)

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "RED",
    "Panel",
    "colour_bar",
    "error_figure",
    "factors_figure",
    "grid",
    "label",
    "lengths_figure",
    "maps_figure",
    "residual_figure",
    "scaling_figure",
    "scaling_panels",
    "spectrum_figure",
]
