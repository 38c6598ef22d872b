import pytest
import torch

from benchmarks.attention import table1
from benchmarks.attention.table1 import LENGTHS, PAPER, Case


def test_paper_savings_are_those_it_prints():
    printed = {64: [(1.5, 1.1), (22.8, 12.7)], 32: [(2.1, 1.2), (26.7, 13.4)]}
    for m, savings in printed.items():
        for i, (memory, time) in zip((0, -1), savings, strict=True):
            ratios = [a / b for a, b in zip(PAPER[None][i], PAPER[m][i], strict=True)]
            assert ratios == pytest.approx((memory, time), rel=0.12)  # they print 0.7 ms
    assert {len(row) for row in PAPER.values()} == {len(LENGTHS)}


def test_modules_share_their_projections():
    x = table1.tokens(16)
    case = Case(16, 16)  # as many landmarks as tokens: exact but for the convolution
    ours = table1.module(case, "ours")
    ours.conv_weight.data.zero_()
    with torch.no_grad():
        for method in ("naive", "sdpa"):
            torch.testing.assert_close(table1.module(case, method)(x), ours(x))


def test_timed_reports_nothing_of_what_is_wrong(monkeypatch):
    monkeypatch.setattr(table1, "naive", lambda q, k, v: v)
    with pytest.raises(SystemExit, match=r"naive, Case.*off float64; no time is reported"):
        table1.timed(Case(64, 16))
