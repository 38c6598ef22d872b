"""Scores against scikit-learn, and the C-index where it is known."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from nystromer.recipes.slides.curves import kaplan_meier, roc_figure, survival_figure
from nystromer.recipes.slides.scores import classification_scores, concordance, num_pairs
from nystromer.recipes.slides.tables import summary


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    labels = np.arange(40) % classes
    shares = rng.dirichlet(np.ones(classes), 40)
    found = classification_scores(labels, shares)
    best = shares.argmax(1)
    scores = shares[:, 1] if classes == 2 else shares
    assert found == pytest.approx(
        {
            "auc": roc_auc_score(labels, scores, multi_class="ovr", average="macro"),
            "balanced_accuracy": balanced_accuracy_score(labels, best),
            "f1": f1_score(labels, best, average="macro"),
            "accuracy": (labels == best).mean(),
        }
    )


def test_the_c_index_is_one_where_the_higher_risk_dies_first():
    times, events = [1.0, 2.0, 3.0, 4.0], [True, True, False, True]
    assert concordance(times, events, [4, 3, 2, 1]) == 1
    assert concordance(times, events, [1, 2, 3, 4]) == 0
    assert concordance(times, events, [0, 0, 0, 0]) == 0.5


def test_the_c_index_leaves_out_pairs_of_which_nobody_knows():
    # the censored one at 1 may have lived longest: no pair; the event at 2 was before the
    # censoring at 2; two events at 5 are none either
    times, events = [1.0, 2.0, 2.0, 5.0, 5.0], [False, True, False, True, True]
    assert num_pairs(times, events) == 3
    assert concordance(times, events, [9, 1, 0, 2, 0]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="needs two bags of which one is known to have lived"):
        concordance([1, 1], [True, True], [0, 1])


def test_the_table_tells_folds_from_seeds():
    scores = [
        {"model": "mean", "fold": f"fold_{i}", "seed": j, "auc": 0.8 + 0.1 * i + 0.01 * j}
        for i in range(2)
        for j in range(2)
    ]
    (row,) = summary(scores)
    assert row == {
        "model": "mean",
        "score": "auc",
        "mean": pytest.approx(0.855),
        "over_folds": pytest.approx(0.1 / 2**0.5),
        "over_seeds": pytest.approx(0.01 / 2**0.5),
    }
    assert summary(scores[:1])[0]["over_folds"] is None


def test_kaplan_meier_is_the_product_written_out():
    times, living = kaplan_meier([(1, True), (2, False), (3, True), (3, True), (4, False)])
    assert times.tolist() == [0, 1, 2, 3, 4]
    assert living == pytest.approx([1, 4 / 5, 4 / 5, 4 / 5 / 3, 4 / 5 / 3])


def test_curves_have_a_line_a_class_and_a_group():
    three = [
        {"label": x, "probability_a": p, "probability_b": 1 - p, "probability_c": 0.5}
        for x, p in (("a", 0.9), ("b", 0.2), ("c", 0.4), ("a", 0.1))
    ]
    axes = roc_figure({"mean": [three, three]}).axes[0]
    assert [x.get_text() for x in axes.get_legend().get_texts()] == [
        "a, AUC 0.500", "b, AUC 0.667", "c, AUC 0.500",
    ]  # fmt: skip
    rows = [{"time": i, "event": "True", "risk": -i} for i in range(1, 7)]
    figure = survival_figure({"mean": [rows], "max": [rows]})
    assert len(figure.axes) == 2
    low, high = figure.axes[0].lines
    assert (low.get_xdata()[1], high.get_xdata()[1]) == (4, 1)
