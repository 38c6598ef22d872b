import dataclasses
import json
import random

import pytest
import torch
from transformers import AutoModel

from nystromer.hf import Plan, calibrate, nystromize, plan_of
from nystromer.hf.calibrate import calibration, choose, plain_choice, rank_heads, summary, table
from nystromer.hf.plan import LayerChoice
from nystromer.hf.survey import Fidelity, LayerSurvey, Scheme, exact_states, last_hidden, measure

from .test_survey import M, bert, tokens


def layer(name, squares, effect, *more, heads=2, reason=None):
    """A survey by hand: squares of each scheme, and the error of the model with it swapped."""
    if reason is not None:
        return LayerSurvey(name, heads, reason)
    schemes = tuple(
        Scheme(LayerChoice(name, num_heads=heads, ridge=i or None), tuple(map(float, x)))
        for i, x in enumerate((squares, *more))
    )
    return LayerSurvey(
        name, heads, None, 8, (4.0,) * heads, 0.9, schemes, Fidelity(0.9, 0.8, effect)
    )


def test_rank_heads_weighs_a_layers_heads_by_what_the_layer_does_to_the_model():
    layers = [
        layer("a", (1, 3), 0.2),  # 0.04, in parts of 1/4 and 3/4
        layer("b", reason="it is causal", squares=(), effect=0),
        layer("c", (9, 1), 0.1),  # 0.01, in parts of 9/10 and 1/10
    ]
    assert rank_heads(layers) == [(0, 1), (0, 0), (2, 0), (2, 1)]


def test_choose_takes_the_scheme_that_suits_the_heads_that_are_left():
    layers = [layer("a", (1, 5), 0.1, (2, 2)), layer("b", (1, 1), 0.1)]
    no_head, one_head, all_heads = (
        choose(layers, exact)[0] for exact in ([], [(0, 1)], [(0, 1), (0, 0), (1, 0)])
    )
    assert (no_head.ridge, no_head.exact_heads) == (1, ())  # 4 < 6
    assert (one_head.ridge, one_head.exact_heads) == (None, (1,))  # 1 < 2
    assert all_heads == LayerChoice("a", "exact", num_heads=2)
    assert choose(layers, [(1, 0)])[1].exact_heads == (0,)


def test_choose_keeps_the_reason_of_what_cannot_be_swapped():
    (found,) = choose([layer("b", (), 0, reason="it is causal")], [])
    assert (found.attention, found.note) == ("exact", "it is causal")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    return bert(), [tokens(2), tokens(2)]


def test_calibrate_gives_the_budget_to_heads(case):
    model, batches = case
    found = calibration(model, batches, num_landmarks=M, max_exact_layers=1)
    assert found.exact_heads == 4  # a layer has four
    assert found.planned.error < found.swapped.error < found.plain.error
    assert calibration(model, batches, num_landmarks=M, max_exact_layers=9).planned.error < 1e-5


def test_calibrate_needs_no_exact_head_unless_asked(case):
    found = calibration(*case, num_landmarks=M)
    assert found.exact_heads == 0
    assert found.planned == found.swapped
    assert {c.num_landmarks for c in found.plan.layers} == {M}


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_calibrate_keeps_the_fewest_heads_that_reach_the_error(case, count):
    model, batches = case
    free = calibration(model, batches, num_landmarks=M)
    ranked, exact = rank_heads(free.layers), exact_states(model, batches)

    def error(n):
        from nystromer.hf.survey import fidelity

        return 1 - fidelity(model, batches, choose(free.layers, ranked[:n]), exact).cosine

    found = calibration(model, batches, num_landmarks=M, max_error=error(count))
    assert found.exact_heads <= count
    assert error(found.exact_heads) <= error(count)
    if found.exact_heads:
        assert error(found.exact_heads - 1) > error(count)


def test_calibrate_spends_what_it_may_and_says_that_it_is_not_enough(case):
    found = calibration(*case, num_landmarks=M, max_exact_layers=1, max_error=0.0)
    assert found.exact_heads == 4
    assert summary(found).endswith("max_error=0.0 is not reached with as many exact heads.")
    within = dataclasses.replace(found, max_error=1.0)
    assert "not reached" not in summary(within)


def test_calibrate_prints_a_table_of_80_columns_and_draws(case, capsys, tmp_path):
    figure = tmp_path / "found.png"
    plan = calibrate(*case, num_landmarks=M, max_exact_layers=1, figure=figure)
    shown = capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "the plan, 4 of 8 heads exact" in shown
    for choice in plan.layers:
        assert ", ".join(map(str, choice.exact_heads)) in shown


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
        assert fidelity.error == pytest.approx(found.planned.error, rel=1e-4), step
        converted.save_pretrained(tmp_path)
        converted = AutoModel.from_pretrained(tmp_path)
    assert [c.exact_heads for c in plan_of(converted).layers] == [
        c.exact_heads for c in plan.layers
    ]
    assert plan_of(converted).layers[0].conv_taps is None  # they are weights now


def test_multiplications_by_hand():
    (a,) = layers = (layer("a", (1, 1), 0.1),)
    choice = LayerChoice("a", num_landmarks=8, num_heads=2, exact_heads=(1,), conv_kernel_size=3)
    fidelity = Fidelity(1, 1, 0)
    found = calibration_of(Plan("bert", (choice,)), layers, fidelity)
    n, d, m = 100, a.head_dim, 8
    full = n * n * 2 * d
    nystrom = 2 * n * m * 2 * d + m * m * 2 * d + 24 * m**3 + n * d * 3
    assert found.multiplications(n) == (full + nystrom, 2 * full)
    assert found.multiplications(31) == (2 * 31 * 31 * 2 * d,) * 2  # below 4 M


def calibration_of(plan, layers, fidelity):
    from nystromer.hf.calibrate import Calibration

    return Calibration(plan, layers, fidelity, fidelity, fidelity)


def test_table_and_summary_name_what_stays_exact():
    layers = (layer("a", (), 0, reason="it is causal"), layer("b", (1, 1), 0.1))
    found = calibration_of(Plan("bert", tuple(choose(layers, []))), layers, Fidelity(1, 1, 0))
    assert "a stays exact: it is causal." in summary(found)
    assert table(found).title == "layer 0: a"
    assert list(table(found).columns[-1].cells) == ["all", "none"]


@pytest.mark.parametrize("option", ["max_exact_layers", "max_error"])
def test_calibrate_refuses_a_negative_budget(case, option):
    with pytest.raises(ValueError, match=f"`{option}` must be at least 0, got -1"):
        calibrate(*case, num_landmarks=M, **{option: -1})


def test_plain_choice_has_nothing_fitted(case):
    found = calibration(*case, num_landmarks=M)
    choice = plain_choice(found.layers[0])
    assert (choice.landmarks, choice.ridge, choice.conv_taps) == ("segment_means", None, None)
    assert choice.num_landmarks == M


def test_calibration_does_not_depend_on_the_order_of_the_batches(case):
    model, batches = case
    shuffled = random.Random(1).sample(batches, len(batches))[::-1]
    one, two = (calibration(model, x, num_landmarks=M) for x in (batches, shuffled))
    assert rank_heads(one.layers) == rank_heads(two.layers)
