"""Losses of bags against sums written out in float64."""

import math

import pytest
import torch

from nystromer.mil.losses import cox_nll, cross_entropy, hazard_nll, risk_of_hazards


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_hazard_nll_is_that_of_the_intervals_written_out():
    logits = torch.tensor([[0.3, -1.0, 2.0], [-0.5, 0.1, 0.4], [1.0, 1.0, -1.0]]).double()
    bins, events = torch.tensor([1, 2, 0]), torch.tensor([True, False, True])
    h = [[sigmoid(x) for x in row] for row in logits.tolist()]
    wanted = [
        -math.log((1 - h[0][0]) * h[0][1]),  # lived through 0, and the event in 1
        -math.log((1 - h[1][0]) * (1 - h[1][1]) * (1 - h[1][2])),  # censored in 2: lived through it
        -math.log(h[2][0]),
    ]
    found = hazard_nll(logits, bins, events)
    assert found.item() == pytest.approx(sum(wanted) / 3, rel=1e-12)


def test_hazard_nll_stays_finite_for_large_logits():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    hazard_nll(logits, torch.tensor([1]), torch.tensor([True])).backward()
    assert logits.grad.isfinite().all()


def test_cox_nll_is_the_partial_likelihood_written_out():
    risks = torch.tensor([0.2, -1.0, 1.5, 0.7]).double()
    times = torch.tensor([5.0, 3.0, 3.0, 9.0]).double()
    events = torch.tensor([True, True, False, True])
    r = risks.tolist()
    exp = [math.exp(x) for x in r]
    wanted = [
        math.log(exp[0] + exp[3]) - r[0],
        math.log(sum(exp)) - r[1],  # the tie at 3 is still looked at
        math.log(exp[3]) - r[3],
    ]
    found = cox_nll(risks[:, None], times, events)
    assert found.item() == pytest.approx(sum(wanted) / 3, rel=1e-12)


def test_cox_nll_of_a_batch_without_events_is_zero_with_a_gradient():
    logits = torch.randn(3, 1, requires_grad=True)
    loss = cox_nll(logits, torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_class_weights_count_in_a_batch_of_one_bag():
    logits, label = torch.tensor([[0.5, -0.5]]).double(), torch.tensor([1])
    plain = -math.log(math.exp(-0.5) / (math.exp(0.5) + math.exp(-0.5)))
    assert cross_entropy(logits, label).item() == pytest.approx(plain, rel=1e-12)
    weighted = cross_entropy(logits, label, torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx(3 * plain, rel=1e-12)


def test_risk_is_higher_where_the_event_is_sooner():
    soon, late = torch.tensor([3.0, -3.0]).double(), torch.tensor([-3.0, 3.0]).double()
    s0 = 1 - sigmoid(3.0)
    wanted = -(s0 + s0 * (1 - sigmoid(-3.0)))
    assert risk_of_hazards(soon).item() == pytest.approx(wanted, rel=1e-12)
    assert risk_of_hazards(soon) > risk_of_hazards(late)
