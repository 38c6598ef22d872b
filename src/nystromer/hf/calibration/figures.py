"""Draws a calibration: the errors of heads and layers, and what a budget buys."""

from __future__ import annotations

import numpy as np

from nystromer.hf.calibration.observe import Scheme
from nystromer.hf.calibration.results import Calibration, Trial
from nystromer.hf.calibration.survey import LayerSurvey
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.plots import BLACK, BLUE, GREEN, ORANGE, RED, colour_bar, grid, label

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.ticker import FuncFormatter, NullFormatter
except ImportError as error:
    raise ImportError("Figures need matplotlib: pip install nystromer[plots].") from error

COLOURS = {"nystrom": BLUE, "clustered": ORANGE, "exact": BLACK}
COSTS = {
    "keys": "scored keys a query, mean of the layers, at {:,} tokens",
    "time": "share of the time of exact attention, at {:,} tokens",
}


def calibration_figure(found: Calibration) -> Figure:
    """Draws the error of every head and layer, and what other budgets of keys or time buy."""
    height = 2.4 + 0.34 * sum(bool(layer.schemes) for layer in found.layers)
    figure = Figure(figsize=(12.5, height + 5 * bool(found.path)), dpi=150, layout="constrained")
    if not found.path:
        _draw_errors(figure, found)
        return figure
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(5, height), hspace=0.06)
    _draw_costs(parts[0, 0], found)
    _draw_errors(parts[1, 0], found)
    return figure


def _draw_costs(figure: FigureBase, found: Calibration) -> None:
    """Draws the embedding's error against the cost of every trial, and what each layer gets."""
    axes, layer_axes = figure.subplots(1, 2, width_ratios=(1.7, 1))
    lines = (
        ([found.plain], RED, "every layer Nyström, plain swap"),
        ([found.swapped], BLUE, "every layer Nyström, best landmarks, inverse, convolution"),
        (found.clustered, ORANGE, "every layer clustered"),
        (found.path, GREEN, "budget spent where it buys most"),
    )
    for trials, colour, name in lines:
        xs, ys = _points(trials)
        axes.plot(xs, ys, "o-", color=colour, linewidth=2, ms=7, label=name)
    axes.plot(*_points([found.planned]), "*", color=BLACK, ms=17, label="the plan")
    axes.set(yscale="log", xlim=(0, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if found.unit == "time":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    grid(axes)
    axes.legend(frameon=False, fontsize=11, labelcolor="linecolor", loc="lower left")
    cost = COSTS[found.unit].format(found.length)
    label(axes, "What a budget buys", cost, "1 − cosine to the exact embedding")
    _draw_layers(layer_axes, found)


def _points(trials: tuple[Trial, ...] | list[Trial]) -> tuple[list[float], list[float]]:
    """Returns costs and errors; exact attention itself has no place on a logarithmic axis."""
    pairs = [(x.cost, 1 - x.fidelity.cosine) for x in trials]
    pairs = [(cost, error) for cost, error in pairs if error > 1e-6]
    return [cost for cost, _ in pairs], [error for _, error in pairs]


def _draw_layers(axes: Axes, found: Calibration) -> None:
    """Draws a bar for each layer: the share of heads that are exact, and what the others are."""
    rows = [(i, c) for i, (x, c) in enumerate(_pairs(found)) if x.schemes]
    for y, (_, choice) in enumerate(rows):
        heads = choice.num_heads or 1
        exact = heads if choice.attention == "exact" else len(choice.exact_heads)
        axes.barh(y, heads - exact, 0.7, color=COLOURS[choice.attention], alpha=0.5)
        axes.barh(y, exact, 0.7, left=heads - exact, color=COLOURS["exact"], alpha=0.75)
        text = "" if choice.attention == "exact" else f"{choice.attention}, {choice.keys} keys"
        axes.text(0.15, y, text.replace("nystrom", "Nyström"), size=11, va="center")
    axes.set_yticks(range(len(rows)), [str(i) for i, _ in rows])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    label(axes, "The plan: heads by attention (black: exact)", "heads", "layer")


def _draw_errors(figure: FigureBase, found: Calibration) -> None:
    """Draws the error of every layer and of every head, and marks the heads that stay exact."""
    head_axes, layer_axes = figure.subplots(1, 2, sharey=True, width_ratios=(1.3, 1))
    rows = [(i, layer, c) for i, (layer, c) in enumerate(_pairs(found)) if layer.schemes]
    errors = np.full((len(rows), max(layer.num_heads for _, layer, _ in rows)), np.nan)
    left = []
    for y, (_, layer, choice) in enumerate(rows):
        squares, power = np.array(_planned(layer, choice).squares), np.array(layer.power)
        errors[y, : len(squares)] = np.sqrt(squares / power)
        exact = range(layer.num_heads) if choice.attention == "exact" else choice.exact_heads
        for head in exact:
            head_axes.plot(head, y, "o", mfc="white", mec=BLACK, ms=7)
        squares[list(exact)] = 0
        left.append((squares.sum() / power.sum()) ** 0.5)
    image = head_axes.imshow(errors, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
    marked = bool(found.exact_heads)
    label(head_axes, "Error of every head" + ("; ○ stays exact" * marked), "head", "layer")
    head_axes.set_yticks(range(len(rows)), [str(i) for i, _, _ in rows])
    colour_bar(figure, image, head_axes, "relative error of its output, as the plan has it", 40)
    layers = [layer for _, layer, _ in rows]
    clustered = [layer.typical("clustered") for layer in layers]
    dots = [
        ([x.plain for x in layers], RED, "plain swap"),
        ([x.error(x.best()) for x in layers], BLUE, "best landmarks, inverse, convolution"),
        (
            [np.nan if s is None else x.error(s) for x, s in zip(layers, clustered, strict=True)],
            ORANGE,
            f"clustered, {next((s.choice.keys for s in clustered if s), 0)} keys",
        ),
    ]
    if marked or found.path:
        dots.append((left, GREEN, "the plan"))
    for xs, colour, name in dots:
        ring = {"mfc": "none", "mew": 2, "ms": 13} if xs is left else {"ms": 8}
        layer_axes.plot(xs, range(len(rows)), "o", color=colour, label=name, **ring)
    grid(layer_axes)
    layer_axes.set_xlim(0, max(1.0, *dots[0][0]) * 1.02)
    layer_axes.legend(
        frameon=False,
        fontsize=11,
        labelcolor="linecolor",
        loc="upper left",
        bbox_to_anchor=(0, -0.16),
        ncols=2,
    )
    label(layer_axes, "Error of every layer's output", "relative error to exact attention", "")


def _pairs(found: Calibration) -> list[tuple[LayerSurvey, LayerChoice]]:
    return list(zip(found.layers, found.plan.layers, strict=True))


def _planned(layer: LayerSurvey, choice: LayerChoice) -> Scheme:
    """Returns the scheme that the plan chose, or the best Nyström one where all heads are exact."""
    same = [x for x in layer.of(choice.attention) if _kind(x.choice) == _kind(choice)]
    return same[0] if same else layer.best()


def _kind(choice: LayerChoice) -> tuple[object, ...]:
    return (choice.attention, choice.keys, choice.landmarks, choice.ridge)
