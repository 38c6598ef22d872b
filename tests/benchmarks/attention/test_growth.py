import numpy as np
import pytest

from benchmarks.attention import growth

NS = [4096, 8192, 16_384, 32_768]


def test_exponent_of_a_power_law():
    fit = growth.exponent([(512, 1e9), *((n, 3 * n**1.5) for n in NS)])  # 512 is left out
    assert fit.value == pytest.approx(1.5)
    assert fit.margin == pytest.approx(0, abs=1e-6)


def test_exponent_margin_is_the_95_percent_interval():
    ys = [1.1, 1.9, 4.3, 7.7]
    (slope, _), cov = np.polyfit(np.log(NS), np.log(ys), 1, cov=True)
    fit = growth.exponent(list(zip(NS, ys, strict=True)))
    assert fit.value == pytest.approx(slope)
    assert fit.margin == pytest.approx(4.302653 * cov[0, 0] ** 0.5)  # Student's t, 2 left


def test_exponent_of_two_points_is_none():
    assert growth.exponent([(512, 1.0), (4096, 1.0), (8192, 2.0)]) is None


def test_last_exponent_is_of_the_two_longest():
    assert growth.last_exponent([(1, 7.0), (4, 1.0), (8, 4.0)]) == pytest.approx(2)
