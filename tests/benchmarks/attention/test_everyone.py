from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import oracle
from benchmarks import common
from benchmarks.attention import everyone, others
from benchmarks.attention.others import OTHERS, SAME, Case
from nystromer.bench import worker

CASE = Case("plain PyTorch", 128, 16, "float32", "forward")
NYSTROM = [name for name, (computes, _) in OTHERS.items() if computes == SAME]


def layer_of(name):
    if name == "nystrom-attention":
        layer = pytest.importorskip("nystrom_attention").NystromAttention(512, num_landmarks=16)
        return layer, ("to_qkv",)
    if name == "linformer":
        layer = pytest.importorskip("linformer").LinformerSelfAttention(512, 128, k=16)
        return layer, ("to_q", "to_k", "to_v")
    layer = others.other(replace(CASE, against=name), torch.randn(8, 33)).layer
    layer.query, layer.key, layer.value = (nn.Linear(512, 512) for _ in range(3))
    return layer, ("query", "key", "value")


@pytest.mark.parametrize("name", ["nystrom-attention", "transformers", "linformer"])
def test_unprojected_is_the_layer_between_its_projections(name):
    layer, names = layer_of(name)
    x = torch.randn(1, 128, 512)
    with torch.no_grad():
        whole = layer(x)
        given = [getattr(layer, projection)(x) for projection in names]
        qkv = given[0].chunk(3, -1) if len(given) == 1 else given
        back = getattr(layer, "to_out", nn.Identity())
        between = back(others.Unprojected(layer, *names)(*qkv))
    torch.testing.assert_close(between, whole[0] if isinstance(whole, tuple) else whole)


@pytest.mark.parametrize("name", NYSTROM)
def test_the_same_function_is_the_oracles(name):
    case = replace(CASE, against=name)
    tokens, taps, _ = everyone.prepare(case)
    heads = [x.unflatten(2, (8, 64)).transpose(1, 2).double().numpy() for x in tokens]
    init = "matrix" if name == "plain PyTorch" else "sequence"
    wanted = oracle.nystrom_attention(
        *heads, 16, 64**-0.5, init=init, conv_weight=taps.double().numpy()
    )
    expected = everyone.equations(case, tokens, taps, None)
    np.testing.assert_allclose(
        expected[0].detach().unflatten(2, (8, 64)).transpose(1, 2), wanted, rtol=1e-10, atol=1e-10
    )
    results = [
        worker.results(make(case, taps), tokens, None) for make in (others.other, others.ours)
    ]
    found = everyone.check(case, results, expected)
    assert found["note"] == ""
    assert 0 < found["other_off"] < 1e-5


@pytest.mark.parametrize(
    ("against", "factors", "note"),
    [
        ("transformers", (1, 1, 1), ""),
        ("transformers", (1.001, 1, 1), "other disagrees: 1.0e-03 off the float64 equations"),
        ("transformers", (1, 1.01, 1.01), "other disagrees: 1.0e-02 off the float64 equations"),
        ("transformers", (1, 1, float("nan")), "other disagrees: nan off the float64 equations"),
        ("linformer", (2, 1, 1), ""),  # another function
    ],
)
def test_check_marks_what_disagrees(against, factors, note):
    """Of an output and two gradients."""
    case = replace(CASE, against=against, direction="forward + backward")
    expected = tuple(torch.ones(3, dtype=torch.float64) for _ in factors)
    result = tuple(x.float() * factor for x, factor in zip(expected, factors, strict=True))
    right = tuple(x.float() for x in expected)
    assert everyone.check(case, [result, right], expected)["note"] == note
    wrong = everyone.check(case, [right, tuple(2 * x for x in right)], expected)
    assert wrong["note"] == "ours disagrees: 1.0e+00 off the float64 equations"


def test_measure_keeps_a_row_for_what_fails_or_disagrees(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such thing\nsecond line")

    monkeypatch.setattr(common, "fresh_process", fail)
    row = everyone.measure(CASE)
    assert row["note"] == "fails: RuntimeError: no such thing"
    assert row["ratio"] is row["other_mib"] is None
    assert torch.__version__.startswith(row["version"])  # it also names the build

    off = {"other_off": 0.1, "ours_off": 1e-7, "note": "other disagrees: 1.0e-01"}
    monkeypatch.setattr(common, "fresh_process", lambda function, *_: off)
    row = everyone.measure(CASE)
    assert row["other_off"] == 0.1
    assert row["ratio"] is row["other_mib"] is row["ours_mib"] is None


def test_cases_are_everyone_at_every_size():
    cases = list(everyone.cases())
    assert len(cases) == len(set(cases))
    for name in OTHERS:
        sizes = {(c.n, c.num_landmarks) for c in cases if c.against == name}
        shared = {(1024, 64), (4096, 64), (16_384, 64), (1024, 256), (4096, 256), (16_384, 256)}
        assert sizes == (shared if name == "exact" else shared | {(65_536, 64)})
    assert {(c.dtype, c.direction) for c in cases} == {
        (dtype, direction) for dtype in ("float32", "bfloat16") for direction in common.DIRECTIONS
    }


def test_other_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"`against` must be one of plain PyTorch.*, got 'flash'"):
        others.other(replace(CASE, against="flash"), torch.randn(8, 33))
