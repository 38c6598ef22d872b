import itertools

import pytest

from nystromer.hf.calibration.allocate import Option, allocations, hull, options, total, worth
from nystromer.hf.calibration.fidelity import Fidelity
from nystromer.hf.calibration.observe import Scheme
from nystromer.hf.calibration.survey import LayerSurvey
from nystromer.hf.conversion.plan import LayerChoice

NYSTROM = {"num_landmarks": 8}
CLUSTERED = {"num_query_clusters": 4, "num_key_clusters": 4, "num_exact_keys": 8}  # as many keys


def scheme(attention, squares, effect=None, **more):
    """effect: the error of the model with this layer alone so."""
    size = NYSTROM if attention == "nystrom" else CLUSTERED
    choice = LayerChoice("a", attention, num_heads=len(squares), **{**size, **more})
    alone = None if effect is None else Fidelity(0.9, 0.8, effect)
    return Scheme(choice, tuple(map(float, squares)), alone)


def layer(*schemes, reason=None):
    return LayerSurvey("a", 2, reason, 8, (4.0, 4.0), 0.9, schemes)


def exact_heads(found):
    return 2 if found.attention == "exact" else len(found.exact_heads)


def price(layer, choice):
    return exact_heads(choice) * 10 + (choice.keys == 8)


def points(*pairs):
    return [Option(LayerChoice("a", ridge=i + 1), *map(float, x)) for i, x in enumerate(pairs)]


def pairs(found):
    return [(x.cost, x.error) for x in found]


def test_options_of_nystrom_have_their_worst_heads_exact():
    found = options(layer(scheme("nystrom", (1, 3), 0.2)), ("nystrom",), price)
    kept = {x.choice.exact_heads: x.error for x in found if x.choice.attention == "nystrom"}
    assert kept == {(): pytest.approx(0.04), (1,): pytest.approx(0.01)}  # parts of 3/4 and 1/4
    assert [x.error for x in found if x.choice.attention == "exact"] == [0]


def test_options_weigh_schemes_by_what_their_attention_does_to_the_model():
    found = options(
        layer(
            scheme("nystrom", (1, 1), 0.2),
            scheme("nystrom", (2, 2), ridge=0.1),
            scheme("clustered", (1, 1), 0.1),
            scheme("clustered", (4, 4), num_exact_keys=4),
        ),
        ("nystrom", "clustered"),
        price,
    )
    errors = {
        (x.choice.attention, x.choice.ridge, x.choice.keys): x.error
        for x in found
        if not x.choice.exact_heads
    }
    assert errors == {
        ("exact", None, 128): 0,
        ("nystrom", None, 16): pytest.approx(0.04),
        ("nystrom", 0.1, 16): pytest.approx(0.08),
        ("clustered", None, 16): pytest.approx(0.01),
        ("clustered", None, 12): pytest.approx(0.04),
    }
    assert not any(x.choice.exact_heads for x in found if x.choice.attention == "clustered")


def test_options_never_take_an_attention_that_was_not_asked_for():
    found = layer(scheme("nystrom", (1, 1), 0.2), scheme("clustered", (1, 1), 0.1))
    kinds = {x.choice.attention for x in options(found, ("nystrom",), price)}
    assert kinds == {"nystrom", "exact"}


def test_options_of_a_layer_that_cannot_be_swapped_cost_nothing_and_keep_the_reason():
    (found,) = options(layer(reason="it is causal"), ("nystrom",), price)
    assert (found.choice.attention, found.choice.note) == ("exact", "it is causal")
    assert (found.cost, found.error) == (0, 0)


def test_hull_keeps_what_is_worth_its_cost():
    found = points((0, 9), (0, 8), (1, 8.5), (2, 7), (3, 2), (4, 2), (5, 0))
    assert pairs(hull(found)) == [(0, 8), (3, 2), (5, 0)]
    slopes = [worth(*pair) for pair in itertools.pairwise(hull(found))]
    assert slopes == sorted(slopes, reverse=True)


def test_allocations_are_the_best_for_their_cost():
    """Against every combination."""
    layers = [
        points((1, 9), (2, 4), (4, 1), (8, 0)),
        points((1, 3), (2, 2.5), (4, 0.2), (8, 0)),
        points((1, 6), (8, 0)),
    ]
    found = allocations(layers)
    assert pairs(found[0]) == [(1, 9), (1, 3), (1, 6)]
    assert pairs(found[-1]) == [(8, 0)] * 3
    for plan in found:
        error = sum(x.error for x in plan)
        for other in itertools.product(*layers):
            if total(other) <= total(plan):
                assert error <= sum(x.error for x in other) + 1e-9


def test_allocations_keep_to_the_budget_and_spend_what_is_left():
    layers = [points((0, 10), (5, 0)), points((0, 4), (2, 2), (4, 1))]
    assert [pairs(plan) for plan in allocations(layers, 4)] == [
        [(0, 10), (0, 4)],
        [(0, 10), (2, 2)],  # 5 is too much
        [(0, 10), (4, 1)],
    ]
    assert pairs(allocations(layers, 7)[-1]) == [(5, 0), (2, 2)]
