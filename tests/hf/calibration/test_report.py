import dataclasses

import pytest

from nystromer.hf.calibration.fidelity import Fidelity
from nystromer.hf.calibration.report import described, summary, table
from nystromer.hf.calibration.results import Calibration, Trial
from nystromer.hf.conversion.plan import LayerChoice, Plan

from .test_allocate import layer, scheme

NYSTROM = scheme("nystrom", (1, 1), 0.2)
CLUSTERED = scheme("clustered", (0.25, 0.25), 0.1)


def trial(cosine=0.9, cost=16.0):
    return Trial("every layer so", cost, Fidelity(cosine, cosine - 0.1, 0.1))


def found(*choices, layers=None, **more):
    layers = layers or (layer(reason="it is causal"), layer(NYSTROM, CLUSTERED))
    values = {"unit": "keys", "path": (), "planned": trial(), "max_error": None, **more}
    return Calibration(
        Plan("bert", choices),
        layers,
        512,
        plain=trial(),
        swapped=trial(),
        clustered=(trial(0.95, 12), trial(0.97)),
        **values,
    )


CAUSAL = LayerChoice("a", "exact", num_heads=2, note="it is causal")


def test_table_and_summary_name_what_stays_exact():
    shown = found(CAUSAL, NYSTROM.choice)
    assert "a stays exact: it is causal." in summary(shown)
    assert table(shown).title == "layer 0: a"
    assert list(table(shown).columns[-1].cells) == ["all", "none"]


def test_table_shows_nystrom_and_clustered_side_by_side():
    shown = table(found(CAUSAL, CLUSTERED.choice))
    cells = [list(column.cells)[1] for column in shown.columns]
    assert cells == ["1", "0.90", "0.50", "0.25", "0.1000", "0.1000", "clustered, 16 keys", "none"]
    assert shown.columns[3].header == "clustered\n16 keys"
    short = table(found(NYSTROM.choice, layers=(layer(NYSTROM),)))
    assert [next(iter(column.cells)) for column in short.columns][3::2] == ["-", "-", "none"]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (CAUSAL, "exact"),
        (LayerChoice("a", "clustered"), "clustered, 128 keys"),
        (LayerChoice("a"), "64 segment means, six steps"),
        (LayerChoice("a", num_landmarks=8, landmarks="kmeans", ridge=0.1), "8 kmeans, ridge 0.1"),
    ],
)
def test_described(choice, wanted):
    assert described(choice) == wanted


def test_summary_has_a_line_a_trial():
    kept = dataclasses.replace(NYSTROM.choice, exact_heads=(1,))
    lines = summary(found(CAUSAL, kept, planned=trial(0.99, 264))).splitlines()
    start = lines.index(
        "Cosine to the exact embedding, mean (worst), and keys a query at 512 tokens:"
    )
    assert lines[start + 1 : start + 6] == [
        "  0.9000 (0.8000)    16  every layer so",
        "  0.9000 (0.8000)    16  every layer so",
        "  0.9500 (0.8500)    12  every layer so",
        "  0.9700 (0.8700)    16  every layer so",
        "  0.9900 (0.8900)   264  the plan, 1 of 4 heads exact",
    ]


def test_summary_of_a_budget_of_time_shows_shares():
    shown = summary(found(CAUSAL, CLUSTERED.choice, unit="time", path=(trial(),)))
    assert "and share of time at 512 tokens" in shown
    assert "1600%  the plan, 0 of 4 heads exact" in shown


def test_summary_says_that_the_budget_is_not_enough():
    shown = found(CAUSAL, NYSTROM.choice, max_error=0.05)
    assert summary(shown).endswith("max_error=0.05 is not reached within the budget.")
    assert "not reached" not in summary(dataclasses.replace(shown, max_error=0.2))


def test_multiplications_are_those_of_all_heads():
    shown = found(CAUSAL, dataclasses.replace(NYSTROM.choice, exact_heads=(1,)))
    shown = dataclasses.replace(shown, layers=(layer(NYSTROM), layer(NYSTROM)))
    n, d, m = 100, 8, 8
    full = n * n * 2 * d
    nystrom = 2 * n * m * 2 * d + m * m * 2 * d + 24 * m**3
    assert shown.multiplications(n) == (3 * full + nystrom, 4 * full)
    assert shown.exact_heads == 3
