import json
import random

import pytest
import torch
from transformers import AutoModel

from nystromer.hf import Plan, calibrate, nystromize, plan_of
from nystromer.hf.calibration.calibrate import calibration, plain_choice, uniform
from nystromer.hf.calibration.fidelity import exact_states, fidelity, last_hidden, measure
from nystromer.hf.calibration.survey import survey

from .test_survey import M, bert, tokens


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    return bert(), [tokens(2), tokens(2)]


def test_calibrate_gives_the_budget_to_heads(case):
    model, batches = case
    found = calibration(model, batches, num_landmarks=M, max_exact_layers=1)
    assert found.exact_heads == 4  # a layer has four
    assert found.planned.fidelity.error < found.swapped.fidelity.error < found.plain.fidelity.error
    assert (
        calibration(model, batches, num_landmarks=M, max_exact_layers=9).planned.fidelity.error
        < 1e-5
    )


def test_calibrate_needs_no_exact_head_unless_asked(case):
    found = calibration(*case, num_landmarks=M)
    assert found.exact_heads == 0
    assert found.planned.fidelity == found.swapped.fidelity
    assert {c.attention for c in found.plan.layers} == {"nystrom"}
    assert {c.num_landmarks for c in found.plan.layers} == {M}


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_calibrate_keeps_the_fewest_heads_that_reach_the_error(case, count):
    model, batches = case
    exact = exact_states(model, batches)

    def error(n):
        plan = calibration(model, batches, num_landmarks=M, max_exact_layers=n / 4).plan
        return 1 - fidelity(model, batches, plan.layers, exact).cosine

    found = calibration(model, batches, num_landmarks=M, max_error=error(count))
    assert found.exact_heads <= count
    assert error(found.exact_heads) <= error(count)
    if found.exact_heads:
        assert error(found.exact_heads - 1) > error(count)


def test_calibrate_spends_what_it_may(case):
    found = calibration(*case, num_landmarks=M, max_exact_layers=1, max_error=0.0)
    assert found.exact_heads == 4


def cost(plan, n=40):
    """The mean over the layers, by hand."""
    return sum(
        n if x.attention == "exact" else x.keys + len(x.exact_heads) / 4 * (n - x.keys)
        for x in plan.layers
    ) / len(plan.layers)


@pytest.mark.parametrize("max_keys", [4, 7, 10, 23, 40])
def test_calibrate_keeps_to_a_budget_of_keys(case, max_keys):
    found = calibration(*case, num_landmarks=M, max_keys=max_keys)
    assert found.planned.cost == pytest.approx(cost(found.plan))
    assert found.planned.cost <= max_keys + 1e-9
    assert (found.unit, found.length) == ("keys", 40)
    assert [trial.cost for trial in found.clustered] == pytest.approx([4, 8, 12, 16])
    assert found.plain.cost == found.swapped.cost == 2 * M


def test_calibrate_buys_less_error_with_more_keys(case):
    errors = [
        calibration(*case, num_landmarks=M, max_keys=keys).planned.fidelity.error
        for keys in (4, 12, 24, 40)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 < errors[-2]


def test_calibrate_takes_clustered_attention_where_it_is_better(case):
    """Same keys; with random weights it is, in one layer or both."""
    found = calibration(*case, num_landmarks=M, max_keys=2 * M)
    assert "clustered" in {x.attention for x in found.plan.layers}
    assert found.planned.fidelity.error < found.swapped.fidelity.error


def test_calibrate_counts_keys_at_a_length(case):
    """An exact layer costs that many."""
    found = calibration(*case, num_landmarks=M, max_keys=1000, length=1000)
    assert {x.attention for x in found.plan.layers} == {"exact"}
    assert found.planned.cost == found.length == 1000
    less = calibration(*case, num_landmarks=M, max_keys=499, length=1000)
    assert "exact" not in {x.attention for x in less.plan.layers}


def test_calibrate_finds_the_fewest_keys_that_reach_an_error(case):
    model, batches = case
    free = calibration(model, batches, num_landmarks=M, max_keys=20)
    wanted = 1 - free.planned.fidelity.cosine
    found = calibration(model, batches, num_landmarks=M, max_keys=40, max_error=wanted)
    assert found.planned.cost <= free.planned.cost
    assert 1 - found.planned.fidelity.cosine <= wanted


def test_calibrate_keeps_to_a_budget_of_time(case):
    found = calibration(*case, num_landmarks=M, max_time=100)
    assert found.unit == "time"
    assert found.planned.fidelity.cosine == pytest.approx(1)
    assert found.planned.cost == pytest.approx(1)  # as exact attention
    assert all(trial.cost > 0 for trial in (found.plain, found.swapped, *found.clustered))
    message = r"`max_time` must be at least .* at 40 tokens, got 1e-06"
    with pytest.raises(ValueError, match=message):
        calibration(*case, num_landmarks=M, max_time=1e-6)


def test_the_path_goes_from_the_cheapest_to_almost_exact(case):
    found = calibration(*case, num_landmarks=M, max_keys=12)
    costs = [trial.cost for trial in found.path]
    assert costs[0] == pytest.approx(4)
    assert costs == sorted(set(costs))
    assert len(costs) <= 8
    errors = [trial.fidelity.error for trial in found.path]
    assert errors[-1] < errors[0] / 2


@pytest.mark.parametrize("options", [{"max_exact_layers": 1}, {"max_keys": 12}, {}])
def test_calibrate_prints_a_table_of_80_columns_and_draws(case, capsys, tmp_path, options):
    figure = tmp_path / "found.png"
    plan = calibrate(*case, num_landmarks=M, figure=figure, **options)
    shown = capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert ("the plan" in shown.split("Cosine")[1]) == bool(options)
    assert "every layer clustered, 16 keys" in shown
    for choice in plan.layers:
        assert ", ".join(map(str, choice.exact_heads)) in shown


def test_a_plan_of_keys_goes_into_a_model_that_is_as_close_as_was_measured(case):
    model, batches = case
    found = calibration(model, batches, num_landmarks=M, max_keys=14)
    converted = nystromize(bert(), plan=Plan.from_json(found.plan.to_json()))
    converted.load_state_dict(model.state_dict(), strict=False)
    exact = exact_states(model, batches)
    got = measure([last_hidden(converted.eval(), x) for x in batches], exact)
    assert got.error == pytest.approx(found.planned.fidelity.error, rel=1e-4)


def test_the_plan_goes_through_json_into_a_model_that_keeps_it(case, tmp_path):
    model, batches = case
    found = calibration(model, batches, num_landmarks=M, max_exact_layers=1)
    text = found.plan.to_json()
    plan = Plan.from_json(text)
    assert plan == found.plan
    assert max(len(json.loads(text)["layers"][0]["conv_taps"]), 4) == 4
    assert len(text.splitlines()) < 40  # a head's taps stand on one line
    converted = nystromize(bert(), plan=plan)
    converted.load_state_dict(model.state_dict(), strict=False)
    exact = exact_states(model, batches)
    for step in ("as made", "loaded"):
        fidelity = measure([last_hidden(converted.eval(), x) for x in batches], exact)
        assert fidelity.error == pytest.approx(found.planned.fidelity.error, rel=1e-4), step
        converted.save_pretrained(tmp_path)
        converted = AutoModel.from_pretrained(tmp_path)
    assert [c.exact_heads for c in plan_of(converted).layers] == [
        c.exact_heads for c in plan.layers
    ]
    assert plan_of(converted).layers[0].conv_taps is None  # they are weights now


@pytest.mark.parametrize("option", ["max_exact_layers", "max_error", "max_keys", "max_time"])
def test_calibrate_refuses_a_negative_budget(case, option):
    with pytest.raises(ValueError, match=f"`{option}` must be at least 0, got -1"):
        calibrate(*case, num_landmarks=M, **{option: -1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_keys": 8, "max_exact_layers": 1},
            "A plan has one budget, got max_exact_layers=1 and max_keys=8; leave out all but one",
        ),
        ({"max_keys": 3}, "`max_keys` must be at least 4, .* costs at 40 tokens, got 3"),
        ({"max_keys": 8, "length": 0}, "`length` must be at least 1, got 0"),
    ],
)
def test_calibrate_refuses(case, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(*case, num_landmarks=M, **options)


def test_trials_are_named_by_their_keys_beside_a_layer_that_stays_exact():
    model = bert()
    model.encoder.layer[0].attention.self.is_causal = True
    found = calibration(model, [tokens()], num_landmarks=M)
    assert [x.name for x in found.clustered][:2] == [
        "every layer clustered, 4 keys",
        "every layer clustered, 8 keys",
    ]


def test_uniform_keeps_layers_that_cannot_be_swapped_in_their_place():
    model = bert()
    model.encoder.layer[0].attention.self.is_causal = True
    plain, best, *clustered = uniform(survey(model, [tokens()], M))
    assert [[x.attention for x in choices] for choices in (plain, best)] == [
        ["exact", "nystrom"]
    ] * 2
    assert [[x.attention for x in choices] for choices in clustered] == [["exact", "clustered"]] * 4
    assert [choices[1].keys for choices in clustered] == [4, 8, 12, 16]


def test_plain_choice_has_nothing_fitted(case):
    found = calibration(*case, num_landmarks=M)
    choice = plain_choice(found.layers[0])
    assert (choice.landmarks, choice.ridge, choice.conv_taps) == ("segment_means", None, None)
    assert choice.num_landmarks == M


def test_calibration_does_not_depend_on_the_order_of_the_batches(case):
    model, batches = case
    shuffled = random.Random(1).sample(batches, len(batches))[::-1]
    one, two = (calibration(model, x, num_landmarks=M, max_keys=16) for x in (batches, shuffled))
    assert [(x.attention, x.keys, x.exact_heads) for x in one.plan.layers] == [
        (x.attention, x.keys, x.exact_heads) for x in two.plan.layers
    ]
