"""The scripts on one sequence in several processes."""

import math

import pytest

from benchmarks.scale.exchange import formulas
from benchmarks.scale.simulation import simulated, table


def test_formulas_of_exact_attention():
    """Of four processes with 10 tokens of 8 heads of 64 each, in float32."""
    tensor = 4 * 8 * 64 * 10
    assert formulas(40, 4) == {
        "ring_bytes": 3 * (2 + 4) * tensor,
        "all_to_all_bytes": 8 * (tensor - tensor // 4),
    }


def test_the_simulation_starts_from_the_published_times():
    """131,072 tokens of 4 sequences on one GPU, as one sequence of a part on each of 8."""
    step = simulated(8, 8 * 4 * 131_072)
    assert step.compute == pytest.approx(53.67e-3)
    assert step.exact == pytest.approx(3380e-3 / 4 * 32**2 / 8)
    assert math.isnan(simulated(8, 2**30).compute)
    assert simulated(1024, 2**30).exchange == simulated(1024, 2**20).exchange
    assert "1,073,741,824 | 1,024" in table()
