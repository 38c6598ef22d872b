"""What callers may hold beside [B, H, N, D]: other leading dimensions, grouped heads, any M."""

import pytest
import torch
from torch.nn import functional as F

import nystromer
from cases import BACKENDS, ROUNDING, Case, assert_close, make_inputs, widest
from nystromer import (
    NystromAttention,
    clustered_attention,
    clustered_attention_rows,
    nystrom_attention,
    nystrom_attention_rows,
    nystrom_attention_varlen,
)
from nystromer.landmarks import kmeans, sample_tokens, segment_means

FEW_CLUSTERS = {"num_query_clusters": 4, "num_key_clusters": 4, "num_exact_keys": 8}
# every public function, of query, key and value [..., H, N, D]; and its options
CALLS = {
    "nystrom_attention": (nystrom_attention, {"num_landmarks": 8}),
    "clustered_attention": (clustered_attention, FEW_CLUSTERS),
    "nystrom_attention_rows": (
        lambda q, k, v, **options: nystrom_attention_rows(q, k, [3, 9], **options),
        {"num_landmarks": 8},
    ),
    "clustered_attention_rows": (
        lambda q, k, v, **options: clustered_attention_rows(q, k, [3, 9], **options),
        FEW_CLUSTERS,
    ),
}
calls = pytest.mark.parametrize("name", CALLS)


@pytest.mark.parametrize("shape", [(), (2,), (3, 1, 2), (2, 3, 2, 2)], ids=str)
@calls
def test_leading_dimensions_are_those_of_scaled_dot_product_attention(name, shape):
    """[N, D], [H, N, D], and batches of several dimensions."""
    function, options = CALLS[name]
    q, k, v = (torch.randn(*shape, 40, dim, dtype=torch.float64) for dim in (6, 6, 5))
    mask = torch.rand(*shape[:-1], 40) < 0.7
    mask[..., 0] = True
    flat = [x.reshape(-1, *([1] if not shape else shape[-1:]), *x.shape[-2:]) for x in (q, k, v)]
    for real in (None, mask):
        of_batch = None if real is None else real.reshape(-1, 40)
        got = function(q, k, v, mask=real, **options)
        expected = function(*flat, mask=of_batch, **options)
        assert got.shape == (*shape, *expected.shape[2:])
        assert_close(got.reshape(expected.shape), expected, 1e-12)
    assert nystrom_attention(q, k, v).shape == F.scaled_dot_product_attention(q, k, v).shape


def test_landmarks_and_query_mask_lead_as_the_tokens_do():
    (q, k, v), options = make_inputs(
        Case(n=40, m=8, n_k=30, batch=1, masks="holes", given_landmarks=True)
    )
    expected = nystrom_attention(q, k, v, **options)[0]
    alone = {name: options[name][0] for name in ("mask", "query_mask")}
    alone["landmarks"] = tuple(x[0] for x in options["landmarks"])
    got = nystrom_attention(q[0], k[0], v[0], **{**options, **alone})
    assert_close(got, expected, 1e-12)


def test_a_mask_must_lead_as_the_tokens_do():
    q, mask = torch.randn(2, 40, 8), torch.ones(40, dtype=torch.bool)
    for bad, message in [
        (mask[None], r"shape \[N\] = \[40\], got \[1, 40\]"),
        (mask.expand(40, 40), r"\[N\] = \[40\], got \[40, 40\]; a mask of query-key pairs"),
        ([True], r"`mask` must be a bool tensor \[N\], got list"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            nystrom_attention(q, q, q, mask=bad)


@pytest.mark.parametrize("kernel", [None, 5])
@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_enable_gqa_is_repeated_heads(backend, heads, kernel):
    dtype = widest(backend)
    q, k, v = (torch.randn(2, h, 40, 8, dtype=dtype) for h in (6, heads, heads))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    taps = None if kernel is None else torch.randn(6, kernel, dtype=dtype)
    options = {"num_landmarks": 8, "conv_weight": taps, "backend": backend}
    output = nystrom_attention(q, k, v, enable_gqa=True, **options)
    wide = (x.repeat_interleave(6 // heads, 1) for x in (k, v))
    expected = nystrom_attention(q, *wide, **options)
    assert_close(output, expected, ROUNDING[dtype])
    probe = torch.randn_like(output)
    both = (torch.autograd.grad(x, inputs, probe) for x in (output, expected))
    for got, right in zip(*both, strict=True):
        assert_close(got, right, 10 * ROUNDING[dtype])


@calls
def test_every_function_takes_grouped_heads(name):
    function, options = CALLS[name]
    q, k, v = (torch.randn(2, h, 40, 8, dtype=torch.float64) for h in (6, 2, 3))
    got = function(q, k, v, enable_gqa=True, **options)
    wide = (k.repeat_interleave(3, 1), v.repeat_interleave(2, 1))
    assert_close(got, function(q, *wide, **options), 1e-12)
    with pytest.raises(ValueError, match=r"must agree in B, H and D.*; write enable_gqa=True"):
        function(q, k, k, **options)
    for bad in (k[:, :0], torch.randn(2, 4, 40, 8)):
        with pytest.raises(ValueError, match=r"`key` heads that divides the 6 .* got [04]"):
            function(q, bad, bad, enable_gqa=True, **options)


@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_more_landmarks_than_tokens_are_as_many_as_tokens(backend):
    """No table of 1e9 x 1e9 is made; one of a million clusters neither."""
    q, k, v = torch.randn(3, 1, 2, 70, 8)
    exact = F.scaled_dot_product_attention(q, k, v)
    options = {"num_landmarks": 10**9, "backend": backend}
    assert_close(nystrom_attention(q, k, v, **options), exact, 1e-5)
    assert_close(nystrom_attention(q[:, :, :9], k, v, **options), exact[:, :, :9], 1e-5)
    counts = {"num_query_clusters": 10**9, "num_key_clusters": 10**9, "num_exact_keys": 10**9}
    assert_close(clustered_attention(q, k, v, **counts, backend=backend), exact, 1e-5)
    counts["num_key_clusters"] = counts["num_exact_keys"] = 2
    assert clustered_attention(q, k, v, **counts, backend=backend).isfinite().all()


def test_rows_with_more_landmarks_than_tokens_are_exact():
    q, k = torch.randn(2, 1, 2, 70, 8)
    exact = torch.softmax(q @ k.mT / 8**0.5, -1)[:, :, [3]]
    assert_close(nystrom_attention_rows(q, k, [3], num_landmarks=10**9), exact, 1e-5)
    counts = {"num_query_clusters": 10**9, "num_key_clusters": 10**9, "num_exact_keys": 10**9}
    assert_close(clustered_attention_rows(q, k, [3], **counts), exact, 1e-5)


@pytest.mark.parametrize("num_landmarks", [8, 10**6])
def test_a_graph_serves_more_and_fewer_tokens_than_landmarks(num_landmarks):
    class Attention(torch.nn.Module):
        def forward(self, q):
            return nystrom_attention(q, q, q, num_landmarks=num_landmarks)

    length = torch.export.Dim("length", min=2, max=4096)
    q = torch.randn(1, 2, 50, 8)
    program = torch.export.export(Attention(), (q,), dynamic_shapes=({2: length},)).module()
    for n in (5, 50, 131):
        q = torch.randn(1, 2, n, 8)
        assert_close(program(q), Attention()(q), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_function_refuses_float8(dtype):
    q = torch.randn(1, 2, 40, 8).to(dtype)
    wide = q.float()
    packed = q[0].transpose(0, 1)
    module = NystromAttention(8, 2)
    everything = {
        **{name: (lambda f=f, o=o: f(q, q, q, **o)) for name, (f, o) in CALLS.items()},
        "nystrom_attention_varlen": lambda: nystrom_attention_varlen(
            packed, packed, packed, torch.tensor([0, 40])
        ),
        "NystromAttention": lambda: module(q[0]),
    }
    assert set(everything) == set(nystromer.__all__) - {"nystromize"}
    more = [lambda f=f: f(q, 8) for f in (segment_means, sample_tokens, kmeans)]
    more.append(lambda: nystrom_attention(wide, wide, wide, landmarks=(q, q)))
    message = r"must be float16, bfloat16, float32 or float64, got torch.float8_.*; write "
    for call in (*everything.values(), *more):
        with pytest.raises(TypeError, match=message):
            call()
