import numpy as np
import pytest
import torch
from torch.nn import functional as F

import clustered_oracle
from cases import BACKENDS, ROUNDING, TOLERANCE, assert_close, dtypes, make_mask, widest
from nystromer import clustered_attention, nystrom_attention

# (N, D, Dv, masks), (G, M, T)
CASES = [
    ((1, 3, 2, None), (1, 1, 1)),
    ((50, 8, 8, None), (1, 1, 1)),
    ((64, 7, 5, None), (8, 8, 16)),
    ((97, 16, 16, None), (64, 4, 3)),  # query clusters of one and of two
    ((97, 16, 16, None), (5, 200, 3)),  # few keys: exact
    ((64, 16, 16, None), (99, 5, 3)),  # every query its own cluster: exact
    ((131, 16, 24, "right"), (7, 9, 12)),
    ((131, 16, 16, "left"), (16, 8, 20)),
    ((131, 16, 16, "holes"), (6, 16, 20)),
    ((131, 1, 1, "short"), (6, 16, 20)),
    ((1100, 4, 4, None), (32, 24, 40)),  # more tokens than the sample
]
BACKENDS = [x for x in BACKENDS if x != "triton"]
backends = pytest.mark.parametrize("backend", BACKENDS)


def backends_with(*chosen):
    """Every backend with those of the dtypes that it takes."""
    found = [(b, dtype) for b in BACKENDS for dtype in chosen if dtype in dtypes(b)]
    return pytest.mark.parametrize(("backend", "dtype"), found, ids=str)


cases = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c[0] + c[1])))


def inputs(case, dtype=torch.float64, seed=0):
    """Tokens in a few groups, as real ones are, and options."""
    (n, dim, value_dim, masks), budget = case
    g = torch.Generator().manual_seed(seed)
    batch, heads = (5, 2) if masks else (2, 2)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def tokens():
        centres = 2 * draw(batch, heads, 9, dim)
        return centres[:, :, torch.randint(9, (n,), generator=g)] + draw(batch, heads, n, dim) / 2

    qkv = [x.to(dtype) for x in (tokens(), tokens(), draw(batch, heads, n, value_dim))]
    mask = make_mask(masks, batch, n, budget[1] + budget[2], g)
    return qkv, {**options(budget), "mask": mask}


def assert_same(backend, output, expected):
    """Compares bits; the tables of a graph are as large as the padded batch, and sum otherwise."""
    if backend == "graph":
        assert_close(output, expected, 1e-12)
    else:
        assert torch.equal(output, expected)


def options(budget):
    names = ("num_query_clusters", "num_key_clusters", "num_exact_keys")
    return dict(zip(names, budget, strict=True))


def expected_map(qkv, mask, budget, scale=None):
    q, k = (x.double().numpy() for x in qkv[:2])
    mask = None if mask is None else mask.numpy()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.from_numpy(clustered_oracle.attention_map(q, k, budget, scale, mask))


@cases
@backends
def test_clustered_attention_equals_the_oracle(backend, case, poisoned):
    qkv, kwargs = inputs(case, widest(backend))
    weights = expected_map(qkv, kwargs["mask"], case[1])
    output = clustered_attention(*qkv, **kwargs, backend=backend)
    assert_close(output, weights @ qkv[2].double(), TOLERANCE[widest(backend)])


@backends_with(torch.float32, torch.float16, torch.bfloat16)
def test_clustered_attention_in_other_precisions_equals_the_oracle(backend, dtype, poisoned):
    case = CASES[6]
    qkv, kwargs = inputs(case, dtype)
    weights = expected_map(qkv, kwargs["mask"], case[1])
    output = clustered_attention(*qkv, **kwargs, backend=backend)
    assert output.dtype == dtype
    assert_close(output, weights @ qkv[2].double(), TOLERANCE[dtype])


@cases
@backends_with(*TOLERANCE)
def test_clustered_attention_gradients_equal_eager_in_float64(backend, case, dtype, poisoned):
    qkv, kwargs = inputs(case, dtype)
    grad_output = torch.randn(qkv[2].shape)

    def gradients(dtype, backend):
        leaves = [x.to(dtype).requires_grad_() for x in qkv]
        output = clustered_attention(*leaves, **kwargs, backend=backend)
        return torch.autograd.grad(output, leaves, grad_output.to(dtype))

    for name, got, wanted in zip(
        "qkv", gradients(dtype, backend), gradients(torch.float64, "eager"), strict=True
    ):
        assert_close(got, wanted, 3 * TOLERANCE[dtype], name)


@pytest.mark.parametrize(
    "case", [((23, 5, 4, None), (4, 3, 5)), ((19, 3, 3, "short"), (3, 3, 4))], ids=str
)
@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_clustered_attention_passes_gradcheck(backend, case):
    qkv, kwargs = inputs(case, widest(backend))
    qkv = [x.requires_grad_() for x in qkv]
    call = lambda *x: clustered_attention(*x, **kwargs, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, qkv, fast_mode=True)


@backends
def test_clustered_attention_ignores_what_padding_holds(backend):
    qkv, kwargs = inputs(((90, 8, 8, None), (8, 8, 16)), widest(backend))
    wanted = clustered_attention(*qkv, **kwargs, backend=backend)
    padded = [F.pad(x, (0, 0, 7, 30), value=torch.nan).requires_grad_() for x in qkv]
    mask = torch.zeros(2, 127, dtype=torch.bool)
    mask[:, 7:97] = True
    output = clustered_attention(*padded, **{**kwargs, "mask": mask}, backend=backend)
    assert_same(backend, output[:, :, 7:97], wanted)
    assert output[:, :, ~mask[0]].abs().max() == 0
    for grad in torch.autograd.grad(output.sum(), padded):
        assert torch.isfinite(grad).all()
        assert grad[:, :, ~mask[0]].abs().max() == 0


@backends
def test_clustered_attention_ignores_padding_between_tokens(backend):
    qkv, kwargs = inputs(((160, 8, 8, None), (8, 8, 16)), widest(backend))
    mask = (torch.rand(160) < 0.6).expand(2, -1)
    output = clustered_attention(*qkv, **{**kwargs, "mask": mask}, backend=backend)
    compact = [x[:, :, mask[0]] for x in qkv]
    wanted = clustered_attention(*compact, **kwargs, backend=backend)
    assert_same(backend, output[:, :, mask[0]], wanted)


@backends
def test_clustered_attention_ignores_batch_neighbours(backend):
    qkv, kwargs = inputs(((131, 8, 8, "short"), (8, 8, 16)), widest(backend))
    qkv[0][0] *= 10
    together = clustered_attention(*qkv, **kwargs, backend=backend)
    for b in range(5):
        alone = {**kwargs, "mask": kwargs["mask"][b : b + 1]}
        single = clustered_attention(*(x[b : b + 1] for x in qkv), **alone, backend=backend)
        assert torch.equal(together[b : b + 1], single)


@backends
def test_clustered_attention_is_exact_where_the_budget_covers_all_keys(backend):
    """L = T + M, and a short sequence beside a long one."""
    qkv, kwargs = inputs(((100, 8, 8, None), (8, 16, 40)), widest(backend))
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[1, 56:] = False
    output = clustered_attention(*qkv, **{**kwargs, "mask": mask}, backend=backend)
    wanted = F.scaled_dot_product_attention(*(x[1:, :, :56] for x in qkv))
    assert_close(output[1:, :, :56], wanted, ROUNDING[widest(backend)])


@backends
def test_clustered_attention_beats_nystrom_where_tokens_have_clusters(backend):
    q, k, v = inputs(((1000, 16, 16, None), (1, 1, 1)), widest(backend))[0]
    exact = F.scaled_dot_product_attention(q, k, v)
    ours = clustered_attention(q, k, v, backend=backend)
    nystrom = nystrom_attention(q, k, v, num_landmarks=64)
    assert (ours - exact).norm() < 0.3 * (nystrom - exact).norm()


@backends
def test_clustered_attention_of_identical_tokens_is_their_mean_value(backend):
    (q, k, v), kwargs = inputs(((150, 8, 8, None), (8, 8, 16)), widest(backend))
    q, k = (x[:, :, :1].expand(x.shape).clone().requires_grad_() for x in (q, k))
    output = clustered_attention(q, k, v, **kwargs, backend=backend)
    assert_close(output, v.mean(2, keepdim=True).expand(v.shape), ROUNDING[v.dtype])
    for grad in torch.autograd.grad(output.square().sum(), (q, k)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("shift", [0, -1])
@backends_with(torch.float32, torch.float16, torch.bfloat16)
def test_clustered_attention_survives_huge_logits(backend, shift, dtype):
    (q, k, v), kwargs = inputs(((131, 8, 8, "holes"), (8, 8, 16)), dtype)
    qkv = [x.requires_grad_() for x in (100 * q if shift == 0 else q / 8 - 100, k / 8 + 1, v)]
    output = clustered_attention(*qkv, **kwargs, backend=backend)
    assert torch.isfinite(output).all()
    for grad in torch.autograd.grad(output.sum(), qkv):
        assert torch.isfinite(grad).all()


@backends
def test_clustered_attention_of_only_padding_is_zero(backend):
    qkv, kwargs = inputs(((80, 8, 8, None), (8, 8, 16)), widest(backend))
    mask = torch.ones(2, 80, dtype=torch.bool)
    mask[1] = False
    qkv = [x.requires_grad_() for x in qkv]
    output = clustered_attention(*qkv, **{**kwargs, "mask": mask}, backend=backend)
    assert output[1].abs().max() == 0
    for grad in torch.autograd.grad(output.square().sum(), qkv):
        assert torch.isfinite(grad).all()
        assert grad[1].abs().max() == 0
        assert grad[0].abs().max() > 0


@backends
def test_clustered_attention_keeps_nan_in_its_sequence(backend):
    qkv, kwargs = inputs(((80, 8, 8, None), (8, 8, 16)), widest(backend))
    clean = clustered_attention(*qkv, **kwargs, backend=backend)
    for i in range(3):
        dirty = [x.clone() for x in qkv]
        dirty[i][1, :, 20] = torch.nan
        output = clustered_attention(*dirty, **kwargs, backend=backend)
        assert output[1].isnan().any(), "a NaN must not be lost"
        assert torch.equal(output[0], clean[0])


@pytest.mark.parametrize("layout", ["tokens first", "last dimension strided", "expanded heads"])
@backends
def test_clustered_attention_takes_any_strides(backend, layout):
    qkv, kwargs = inputs(((131, 8, 8, "holes"), (8, 8, 16)), widest(backend))
    if layout == "expanded heads":
        qkv = [x[:, :1].expand(-1, 2, -1, -1) for x in qkv]
    wanted = clustered_attention(*(x.contiguous() for x in qkv), **kwargs, backend=backend)
    if layout == "tokens first":
        qkv = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    elif layout == "last dimension strided":
        qkv = [x.mT.contiguous().mT for x in qkv]
    assert_close(
        clustered_attention(*qkv, **kwargs, backend=backend), wanted, ROUNDING[wanted.dtype]
    )


@backends
def test_clustered_attention_is_deterministic(backend):
    qkv, kwargs = inputs(((700, 8, 8, "holes"), (8, 8, 16)), torch.float32)
    runs = [clustered_attention(*qkv, **kwargs, backend=backend) for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@backends
def test_clustered_attention_under_autocast_casts_inputs_only(backend):
    qkv, kwargs = inputs(CASES[6], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = clustered_attention(*qkv, **kwargs, backend=backend)
    assert output.dtype == torch.bfloat16
    half = [x.bfloat16() for x in qkv]
    assert torch.equal(output, clustered_attention(*half, **kwargs, backend=backend))


@backends
def test_clustered_attention_takes_empty_tensors(backend):
    q = torch.zeros(2, 3, 0, 8, requires_grad=True)
    assert clustered_attention(q, q, q, backend=backend).shape == (2, 3, 0, 8)
    none = torch.randn(0, 3, 5, 8)
    assert clustered_attention(none, none, none, backend=backend).shape == none.shape


@backends
def test_clustered_attention_scales_as_told(backend):
    case = ((131, 8, 8, None), (8, 8, 16))
    qkv, kwargs = inputs(case, widest(backend))
    wanted = expected_map(qkv, None, case[1], scale=0.7) @ qkv[2].double()
    output = clustered_attention(*qkv, **kwargs, scale=0.7, backend=backend)
    assert_close(output, wanted, TOLERANCE[widest(backend)])


def test_the_oracle_clusters_every_token_once():
    x = np.random.default_rng(0).normal(size=(700, 4))
    clusters = clustered_oracle.clusters(x, 40)
    assert {len(c) for c in clusters} == {21, 22}
    assert sorted(i for cluster in clusters for i in cluster) == list(range(700))


def test_clustered_attention_errors():
    q = torch.randn(2, 4, 100, 16)
    pairs = torch.ones(100, 100, dtype=torch.bool).tril()
    bad = [
        ((q[0], q, q), {}, ValueError, r"must be \[B, H, N, D\], or .* got `query` \[4, 100, 16\]"),
        ((q, q[..., :8], q), {}, ValueError, "must agree in B, H and D"),
        ((q, q, q[:, :, :50]), {}, ValueError, "must agree in B, H and Nk"),
        ((q[:, :, :50], q, q), {}, ValueError, "of the same tokens, got 50 queries and 100 keys"),
        ((q, q, q), {"is_causal": True}, ValueError, "impossible with clustered attention"),
        ((q, q, q), {"mask": pairs}, ValueError, "mask of query-key pairs .* impossible here"),
        ((q, q, q), {"mask": pairs[:2].float()}, ValueError, "`mask` must be bool"),
        ((q, q, q), {"num_query_clusters": 0}, ValueError, "`num_query_clusters` must be at least"),
        ((q, q, q), {"num_key_clusters": -1}, ValueError, "`num_key_clusters` must be at least 1"),
        ((q, q, q), {"num_exact_keys": 0}, ValueError, "`num_exact_keys` must be at least 1, got"),
        ((q, q, q), {"num_exact_keys": 2.5}, TypeError, "`num_exact_keys` must be an int"),
        ((q, q, q), {"backend": "triton"}, ValueError, "one of 'auto', 'eager'.* got 'triton'"),
    ]
    for args, kwargs, error, message in bad:
        with pytest.raises(error, match=message):
            clustered_attention(*args, **kwargs)
