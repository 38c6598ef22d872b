import importlib
import io
import sys

import numpy as np
import pytest
import torch

from nystromer import plots
from nystromer.bench import Case, Row
from nystromer.diagnostics import Spectrum, diagnose, maps, spectrum


@pytest.fixture(scope="module")
def tokens():
    steps = torch.randn(3, 1, 2, 60, 8, generator=torch.Generator().manual_seed(0))
    return list(steps.cumsum(-2) / 3)


def drawn(figure):
    """The figure itself, once it has been written without a warning."""
    file = io.BytesIO()
    figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    return figure


def lines(axes):
    return [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_maps_figure_shows_both_maps_in_the_same_colours(tokens):
    found = maps(*tokens[:2], num_landmarks=8)
    exact, near, off = (ax.images[0] for ax in drawn(plots.maps_figure(found)).axes[:3])
    np.testing.assert_allclose(exact.get_array(), 60 * found.exact)
    np.testing.assert_allclose(near.get_array(), 60 * found.approximation.clamp(min=0), atol=1e-8)
    np.testing.assert_allclose(off.get_array(), 60 * (found.approximation - found.exact))
    assert exact.norm is near.norm
    assert off.norm.vmin == -off.norm.vmax  # no difference is white


def test_factors_figure_shows_the_three_factors(tokens):
    found = maps(*tokens[:2], num_landmarks=8)
    images = [ax.images[0].get_array() for ax in drawn(plots.factors_figure(found)).axes[:3]]
    for image, factor in zip(
        images, (8 * found.kernel_1, found.inverse, 60 * found.kernel_3), strict=True
    ):
        np.testing.assert_allclose(image, factor)


def test_error_figure_draws_both_errors_and_the_bound(tokens):
    found, bound = diagnose(*tokens, [4, 8, 16]), spectrum(*tokens[:2])
    (axes,) = drawn(plots.error_figure(found, bound)).axes
    for (ms, errors), wanted in zip(
        lines(axes),
        (
            [d.output_error for d in found],
            [d.map_error for d in found],
            [bound.best_error(m) for m in (4, 8, 16)],
        ),
        strict=True,
    ):
        assert list(ms) == [4, 8, 16]
        assert list(errors) == wanted
    assert texts(axes) == ["output", "best map of rank M", "attention map"]  # from below


def test_residual_figure_draws_a_line_for_every_inverse(tokens):
    found = diagnose(*tokens, [4, 8, 60])  # the last is exact
    (axes,) = drawn(plots.residual_figure(found)).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["M = 8", "M = 4"]
    assert tuple(lines(axes)[0][1]) == found[1].inverse.residuals


def test_spectrum_figure_draws_every_head():
    values = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 1.0]])
    (axes,) = drawn(plots.spectrum_figure(Spectrum(values), num_landmarks=2)).axes
    assert [list(y) for _, y in lines(axes)[:2]] == values.tolist()
    assert "misses 30% or more" in texts(axes)[0]  # sqrt(1 / 11)


def test_scaling_figure_leaves_out_rows_without_a_number():
    rows = [
        Row(Case("exact", 1024), 0.1, 2**20),
        Row(Case("blocked", 1024), 0.2, 2**21),
        Row(Case("exact", 4096), note="skipped"),
        Row(Case("blocked", 4096), 0.3, 2**22),
    ]
    time_axes, memory_axes = drawn(plots.scaling_figure(rows)).axes
    assert [(list(x), list(y)) for x, y in lines(time_axes)] == [
        ([1024], [0.1]),
        ([1024, 4096], [0.2, 0.3]),
    ]
    assert [list(y) for _, y in lines(memory_axes)] == [[1.0], [2.0, 4.0]]
    assert sorted(texts(time_axes)) == ["Nyström, blocked", "exact"]


def test_scaling_figure_keeps_names_apart():
    rows = [Row(Case(method, n), n / 1e3, n) for n in (64, 128) for method in ("exact", "blocked")]
    low, high = (text.xyann[1] for text in drawn(plots.scaling_figure(rows)).axes[0].texts)
    assert (low, high) == (0, pytest.approx(14))


def test_lengths_figure_names_short_lines_above_the_highest_and_under_others():
    lines = {
        "high": ("red", [(1, 5.0), (2, 9.0)]),
        "low": ("blue", [(1, 1.0), (2, 2.0)]),
        "long": ("black", [(1, 3.0), (2, 4.0), (4, 6.0)]),
    }
    figure = plots.lengths_figure([plots.Panel("", "", lines)] * 2, share_y=True)
    offsets = {text.get_text(): text.xyann[1] for text in drawn(figure).axes[0].texts}
    assert offsets["low"] < 0 < offsets["high"]
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim()


def test_scaling_figure_of_nothing_is_empty():
    time_axes, _ = drawn(plots.scaling_figure([Row(Case("exact", 9), note="stopped")])).axes
    assert lines(time_axes) == []


def test_plots_name_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "nystromer.plots")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install nystromer\[plots\]"):
        importlib.import_module("nystromer.plots")
