import dataclasses

import pytest
import torch

from nystromer.hf import Plan, nystromize
from nystromer.hf.calibration.fidelity import exact_states, fidelity, last_hidden, measure
from nystromer.hf.calibration.survey import survey

from .test_survey import M, N, bert, tokens


def test_fidelity_is_that_of_the_converted_model():
    model, batch = bert(), tokens(3, lengths=[N, N - 9, 4 * M - 2])
    layers = survey(model, [batch], M)
    near = [layers[0].best().choice, layers[1].typical("clustered").choice]
    choices = [dataclasses.replace(choice, exact_heads=(1, 3)) for choice in near]
    exact = exact_states(model, [batch])
    found = fidelity(model, [batch], choices, exact)
    converted = nystromize(model, plan=Plan("bert", tuple(choices)))
    wanted = measure([last_hidden(converted, batch)], exact)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(wanted), abs=1e-6)
    assert found.error > 1e-3


def test_measure_by_hand():
    h = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [0.0, 0.0]]])
    w = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 1.0], [0.0, 0.0]]])
    found = measure([h], [w])
    assert (found.cosine, found.worst_cosine) == (pytest.approx(0.5), pytest.approx(0.0))
    assert found.error == pytest.approx((2 / 26) ** 0.5)
