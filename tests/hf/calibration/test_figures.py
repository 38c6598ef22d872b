import dataclasses
import importlib
import sys

import numpy as np
import pytest

from nystromer.hf.calibration.figures import calibration_figure

from .test_allocate import layer, scheme
from .test_report import CAUSAL, CLUSTERED, NYSTROM, found, trial


def drawn(figure):
    figure.canvas.draw()
    return figure


def points(axes):
    """Of each line."""
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines]


def test_calibration_figure_shows_every_head_and_what_stays_exact():
    peaked = scheme("nystrom", (1, 0.25), 0.2)
    kept = dataclasses.replace(peaked.choice, exact_heads=(1,))
    layers = (layer(peaked, CLUSTERED), layer(reason="it is causal"), layer(NYSTROM))
    heads, dots = drawn(calibration_figure(found(kept, CAUSAL, CAUSAL, layers=layers))).axes[:2]
    np.testing.assert_allclose(heads.images[0].get_array(), [[0.5, 0.25], [0.5, 0.5]])
    assert points(heads) == [[(1, 0)], [(0, 1)], [(1, 1)]]
    assert [label.get_text() for label in heads.get_yticklabels()] == ["0", "2"]
    plain, best, clustered, plan = ([x for x, _ in line] for line in points(dots))
    assert plain == [0.9, 0.9]
    np.testing.assert_allclose(best, [(1.25 / 8) ** 0.5, 0.5])
    np.testing.assert_allclose(clustered, [0.25, np.nan])
    np.testing.assert_allclose(plan, [(1 / 8) ** 0.5, 0])
    assert [text.get_text() for text in dots.get_legend().get_texts()][2] == "clustered, 16 keys"


def test_calibration_figure_shows_the_heads_as_the_plan_has_them():
    layers = (layer(NYSTROM, CLUSTERED),)
    heads, _ = drawn(calibration_figure(found(CLUSTERED.choice, layers=layers))).axes[:2]
    np.testing.assert_allclose(heads.images[0].get_array(), [[0.25, 0.25]])


def test_calibration_figure_shows_what_a_budget_buys():
    path = (trial(0.9, 10.0), trial(0.99, 20.0), trial(1.0, 30.0))
    layers = (layer(NYSTROM, CLUSTERED), layer(reason="it is causal"), layer(NYSTROM, CLUSTERED))
    kept = dataclasses.replace(NYSTROM.choice, exact_heads=(1,))
    shown = found(
        CLUSTERED.choice, CAUSAL, kept, layers=layers, path=path, planned=trial(0.99, 20.0)
    )
    figure = drawn(calibration_figure(shown))
    costs, bars = figure.axes[:2]
    plain, best, clustered, bought, plan = points(costs)
    assert plain == best == [(16, pytest.approx(0.1))]
    assert clustered == [(12, pytest.approx(0.05)), (16, pytest.approx(0.03))]
    assert bought == [(10, pytest.approx(0.1)), (20, pytest.approx(0.01))]  # no zero on a log axis
    assert plan == [(20, pytest.approx(0.01))]
    assert costs.get_xlabel() == "scored keys a query, mean of the layers, at 512 tokens"
    assert [bar.get_width() for bar in bars.patches] == [2, 0, 1, 1]  # near, exact; by layer
    assert [label.get_text() for label in bars.get_yticklabels()] == ["0", "2"]
    texts = [text.get_text() for text in bars.texts]
    assert texts == ["clustered, 16 keys", "Nyström, 16 keys"]
    assert len(figure.axes) == 5  # with the errors under it, and their colours


def test_calibration_figure_of_time_shows_shares():
    shown = found(CLUSTERED.choice, layers=(layer(NYSTROM, CLUSTERED),), path=(trial(0.9, 0.5),))
    shown = dataclasses.replace(shown, unit="time", planned=trial(0.99, 0.25))
    axes = drawn(calibration_figure(shown)).axes[0]
    assert axes.get_xlabel() == "share of the time of exact attention, at 512 tokens"
    assert axes.xaxis.get_major_formatter()(0.25) == "25%"


def test_figures_name_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "nystromer.hf.calibration.figures")
    monkeypatch.delitem(sys.modules, "nystromer.plots")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install nystromer\[plots\]"):
        importlib.import_module("nystromer.hf.calibration.figures")
