"""Patch flipping on a model whose important patches are known; AUC against scikit-learn's."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from nystromer.mil.maps import explain, for_class
from nystromer.mil.maps.faithfulness import auc, flip, random_map
from nystromer.mil.models import build_model


def model_that_looks_for_large_first_features():
    model = build_model("max", 4, 2, embed_dim=2)
    with torch.no_grad():
        for x in model.parameters():
            x.zero_()
        model.embed[0].weight[0, 0] = 1.0
        model.head.weight[1, 0], model.head.bias[1] = 8.0, -4.0
    return model.eval()


def test_a_right_map_has_the_largest_area_and_a_random_one_none():
    model, x = model_that_looks_for_large_first_features(), torch.rand(40, 4) / 10
    x[3, 0] = 1.0
    scores = explain(model, x, for_class(1))
    right, wrong = (flip(model, x, s, for_class(1)) for s in (scores, -scores))
    assert right.removed[[0, -1]].tolist() == pytest.approx([0.0, 39 / 40])
    assert right.most_first[0] > 0.95 > 0.1 > right.most_first[1]
    assert right.least_first.min() > 0.95
    assert right.area > 0.8
    assert right.area == pytest.approx(-wrong.area, abs=1e-6)
    areas = [flip(model, x, random_map(40, seed), for_class(1)).area for seed in range(40)]
    assert abs(sum(areas) / 40) < 0.25


def test_a_bag_of_one_patch_is_left_alone():
    model = model_that_looks_for_large_first_features()
    assert flip(model, torch.rand(1, 4), torch.ones(1), for_class(1)).area == 0.0


def test_auc_is_that_of_scikit_learn_with_ties():
    scores = torch.randint(0, 6, (50,)).float()
    positive = torch.rand(50) < 0.3
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert auc(scores, torch.zeros(50, dtype=torch.bool)) is None
