"""Draws the attention map of one head, and the three tables that approximate it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from nystromer.diagnostics import Maps
from nystromer.plots.style import as_array, colour_bar, label, weights_norm


def maps_figure(maps: Maps) -> Figure:
    """Draws the exact attention map, its approximation in the same colours, and the difference."""
    figure = Figure(figsize=(12.5, 5.8), dpi=150, layout="constrained")
    panels = exact_axes, near_axes, off_axes = figure.subplots(1, 3, sharey=True)
    n = maps.exact.shape[1]
    exact, near = as_array(maps.exact) * n, as_array(maps.approximation) * n
    norm = weights_norm(exact)
    image = exact_axes.imshow(exact, cmap="magma", norm=norm)
    near_axes.imshow(np.maximum(near, 1e-9), cmap="magma", norm=norm)  # a few are negative
    reach = np.quantile(np.abs(near - exact), 0.99)
    off_image = off_axes.imshow(near - exact, cmap="RdBu_r", vmin=-reach, vmax=reach)
    titles = (
        "Exact attention",
        f"Nyström, {maps.inverse.shape[0]} landmarks",
        f"Difference, relative error {maps.error:.2f}",
    )
    for axes, title in zip(panels, titles, strict=True):
        label(axes, title, "key position", "query position" if axes is exact_axes else "")
    colour_bar(figure, image, [exact_axes, near_axes], "weight (1 = uniform attention)", 40)
    colour_bar(figure, off_image, off_axes, "Nyström minus exact", 19)
    return figure


def factors_figure(maps: Maps) -> Figure:
    """Draws the three tables whose product is the approximate map: a tall, a small, a wide one."""
    figure = Figure(figsize=(12.5, 5.2), dpi=150, layout="constrained")
    axes_1, axes_2, axes_3 = figure.subplots(1, 3, width_ratios=(1, 1.7, 3))
    (n_q, m), n_k = maps.kernel_1.shape, maps.kernel_3.shape[1]
    kernel_1, inverse, kernel_3 = map(as_array, (maps.kernel_1, maps.inverse, maps.kernel_3))
    reach = np.quantile(np.abs(inverse), 0.99)
    weights = {"cmap": "magma", "aspect": "auto"}
    image_1 = axes_1.imshow(kernel_1 * m, norm=weights_norm(kernel_1 * m), **weights)
    image_2 = axes_2.imshow(inverse, aspect="auto", cmap="RdBu_r", vmin=-reach, vmax=reach)
    image_3 = axes_3.imshow(kernel_3 * n_k, norm=weights_norm(kernel_3 * n_k), **weights)
    label(axes_1, f"kernel_1 [{n_q} × {m}]", "landmark", "query position")
    label(axes_2, f"·  kernel_2⁺ [{m} × {m}]", "landmark", "landmark")
    label(axes_3, f"·  kernel_3 [{m} × {n_k}]", "key position", "landmark")
    colour_bar(figure, image_1, axes_1, "weight (1 = uniform)", 12)
    colour_bar(figure, image_2, axes_2, "entry of the inverse", 20)
    colour_bar(figure, image_3, axes_3, "weight (1 = uniform)", 35)
    return figure
