"""What native promises beyond the numbers that every backend is tested for."""

import pytest
import torch

from cases import BACKENDS, assert_close
from clustered.test_attention import CASES, inputs, options
from memory import number_printed
from nystromer import clustered_attention
from nystromer.backends.native import library
from nystromer.clustered.clusters import bisected
from nystromer.clustered.native import native_clustered_forward
from nystromer.clustered.operation import clustered_forward

pytestmark = pytest.mark.skipif("native" not in BACKENDS, reason="its library was not built")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masks", [None, "short"])
def test_native_clustered_forward_is_an_operation_of_torch(masks, dtype):
    (q, k, v), kwargs = inputs(((40, 8, 8, masks), (4, 4, 8)), dtype)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(native_clustered_forward, (q, k, v, kwargs["mask"], 4, 4, 8, 0.25))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_makes_the_same_choices_as_blocked(case):
    """No case holds a tie that rounding decides."""
    (q, k, v), kwargs = inputs(case, torch.float32)
    arguments = (q, k, v, kwargs["mask"], *case[1], q.shape[3] ** -0.5)
    ours, theirs = native_clustered_forward(*arguments), clustered_forward(*arguments)
    for found, expected in zip(ours[1:3], theirs[1:3], strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(ours[3].sort(-1).values, theirs[3].sort(-1).values)


@pytest.mark.parametrize("exponent", [-40, 0, 50])
@pytest.mark.parametrize(("length", "dim", "count"), [(300, 20, 16), (2500, 70, 64), (99, 3, 64)])
def test_native_cuts_tokens_as_bisected_does(length, dim, count, exponent):
    x = 2.0**exponent * inputs(((length, dim, 1, None), (1, 1, 1)), torch.float32)[0][0]
    places = native_clustered_forward(x, x, x, None, count, count, 1, 0.0)[1:3]
    expected = torch.stack([bisected(one, count).places for one in x])
    assert torch.equal(places[0], expected)
    assert torch.equal(places[1], expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e10, 1e30])
@pytest.mark.parametrize("everywhere", [False, True])
def test_native_keeps_every_token_whatever_it_holds(value, everywhere):
    (q, k, v), _ = inputs(((250, 8, 8, None), (1, 1, 1)), torch.float32)
    clean = native_clustered_forward(q, k, v, None, 16, 8, 20, 0.3)
    for x in (q, k):
        x[0] *= value if everywhere else 1
        x[0, 0, 3, 2] = value
    found = native_clustered_forward(q, k, v, None, 16, 8, 20, 0.3)
    for places, size in zip(found[1:3], (16, 32), strict=True):
        assert (places.sort(-1).values.diff() > 0).all()
        assert (places // size).amax() < 250
    exact = found[3].sort(-1).values
    assert (exact.diff() > 0).all(), "every exact key once"
    assert torch.equal(found[0][1], clean[0][1])


def test_native_takes_the_first_of_tokens_all_alike():
    """Ties are cut in the order of the tokens, as eager does."""
    x = torch.ones(1, 1, 100, 4)
    places = native_clustered_forward(x, x, x, None, 8, 8, 4, 0.5)[1]
    assert torch.equal(places[0], bisected(x[0], 8).places)


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 64, 65, 130])
@pytest.mark.parametrize("budget", [(1, 1, 1), (5, 17, 33), (70, 40, 65)])
def test_sizes_beside_those_of_registers_and_panels(budget, dim):
    case = ((203, dim, max(1, dim - 3), None), budget)
    qkv, kwargs = inputs(case, torch.float32)
    wanted = clustered_attention(*(x.double() for x in qkv), **kwargs, backend="eager")
    assert_close(clustered_attention(*qkv, **kwargs, backend="native"), wanted, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_the_same_bits_for_any_number_of_threads(dtype):
    qkv, kwargs = inputs(((1500, 20, 24, "holes"), (70, 16, 48)), dtype)
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 8):
            torch.set_num_threads(number)
            found += [clustered_attention(*qkv, **kwargs, backend="native") for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, found[0]) for x in found)


MEASURE = """
from nystromer import clustered_attention

def run(n):
    q, k, v = (torch.randn(1, 8, n, 64) for _ in range(3))
    before = peak()
    clustered_attention(q, k, v, backend="native")
    return (peak() - before) / (q.numel() * 4)

run(1024)
print(run(32768))
"""


def test_native_memory_grows_by_few_input_sized_tensors():
    """N = 32,768, 8 heads of 64: the output, sorted keys and values, a head's scores a thread."""
    assert number_printed(MEASURE) <= 5


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.randn(1, 1, 9, 4, dtype=torch.float64), r"needs float32 or bfloat16, got .*float64"),
        (torch.randn(1, 1, 9, 4).half(), r"needs float32 or bfloat16, got .*float16; use backend="),
        (torch.randn(1, 1, 9, 4, device="meta"), "needs CPU tensors, got meta; use backend="),
    ],
)
def test_native_refuses_other_dtypes_and_devices(tensor, message):
    budget = options((2, 2, 2))
    with pytest.raises(NotImplementedError, match=message):
        clustered_attention(tensor, tensor, tensor, **budget, backend="native")
    if tensor.device.type == "cpu":
        assert clustered_attention(tensor, tensor, tensor, **budget).shape == tensor.shape


def test_native_names_what_is_missing(monkeypatch):
    q = torch.randn(1, 1, 90, 4)
    monkeypatch.setattr(library, "MISSING", "needs its library")
    with pytest.raises(NotImplementedError, match=r"'native' needs its library; use backend='blo"):
        clustered_attention(q, q, q, backend="native")
    assert clustered_attention(q, q, q).shape == q.shape


def test_native_refuses_forward_differentiation():
    q = torch.randn(1, 1, 90, 4)
    with pytest.raises(NotImplementedError, match=r"'native' has a backward alone.*'eager'"):
        torch.func.grad(lambda x: clustered_attention(x, q, q, backend="native").sum())(q)
