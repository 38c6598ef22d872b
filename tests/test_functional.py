"""nystrom_attention: against the oracle, and every property it promises, on every backend."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from cases import (
    ROUNDING,
    TOLERANCE,
    Case,
    assert_close,
    backends,
    backends_with,
    combinations,
    from_oracle,
    make_inputs,
    relative_error,
    widest,
)
from nystromer import clustered_attention, nystrom_attention
from nystromer.landmarks import kmeans, sample_tokens, segment_means

combined = pytest.mark.parametrize(("backend", "dtype", "case"), list(combinations()), ids=str)


def leaves(tensors, options):
    """The differentiable inputs, as leaves, and the call with them in place."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    options = dict(options)
    inputs = list(tensors)
    if options["conv_weight"] is not None:
        options["conv_weight"] = options["conv_weight"].detach().requires_grad_()
        inputs.append(options["conv_weight"])
    if options["landmarks"] is not None:
        options["landmarks"] = tuple(x.detach().requires_grad_() for x in options["landmarks"])
        inputs += options["landmarks"]
    return tensors, options, inputs


def gradients(tensors, options, grad_output, backend):
    tensors, options, inputs = leaves(tensors, options)
    output = nystrom_attention(*tensors, **options, backend=backend)
    grads = torch.autograd.grad(output, inputs, grad_output, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]


@combined
def test_nystrom_attention_equals_oracle(backend, dtype, case, poisoned):
    tensors, options = make_inputs(case, dtype)
    output = nystrom_attention(*tensors, **options, backend=backend)
    assert output.dtype == dtype
    assert_close(output, from_oracle(tensors, options), TOLERANCE[dtype])


@combined
def test_nystrom_attention_gradients_equal_float64(backend, dtype, case, poisoned):
    tensors, options = make_inputs(case, dtype)
    n, value_dim = tensors[0].shape[2], tensors[2].shape[3]
    grad_output = torch.randn(case.batch, case.heads, n, value_dim, dtype=dtype)

    def double(x):
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    exact_options = {k: double(v) for k, v in options.items()}
    if options["landmarks"] is not None:
        exact_options["landmarks"] = tuple(map(double, options["landmarks"]))
    # float64 eager: itself equal to the oracle and to finite differences, in the tests beside
    expected = gradients(
        [x.double() for x in tensors], exact_options, grad_output.double(), "eager"
    )
    got = gradients(tensors, options, grad_output, backend)
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        assert_close(g, e, 3 * TOLERANCE[dtype], f"gradient {i}")


@pytest.mark.parametrize(
    "case",
    [
        Case(n=11, m=3, kernel=3, batch=2, dim=3, value_dim=2),
        Case(n=11, m=3, kernel=3, batch=3, dim=2, value_dim=2, masks="short"),
        Case(n=9, m=3, batch=3, dim=2, value_dim=2, masks="holes", settings={"pinv_init": "batch"}),
        Case(n=9, m=3, batch=2, dim=2, value_dim=2, settings={"pinv_init": "sequence"}),
        Case(n=9, m=3, batch=2, dim=2, value_dim=2, settings={"pinv_ridge": 1e-2}),
        Case(n=2, n_k=9, m=3, batch=1, dim=2, value_dim=2),
        Case(n=9, n_k=8, m=3, batch=1, dim=2, value_dim=2, given_landmarks=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["eager", "blocked"])  # triton equals eager in float64, above
def test_nystrom_attention_passes_gradcheck(case, backend):
    _, options, inputs = leaves(*make_inputs(case))

    def call(*inputs):
        inputs = list(inputs)
        arguments = dict(options)
        q, k, v = (inputs.pop(0) for _ in range(3))
        if options["conv_weight"] is not None:
            arguments["conv_weight"] = inputs.pop(0)
        if options["landmarks"] is not None:
            arguments["landmarks"] = tuple(inputs)
        return nystrom_attention(q, k, v, **arguments, backend=backend)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@backends
def test_nystrom_attention_ignores_what_padding_holds(backend):
    """Neither the values at padding, NaN included, nor how much of it there is, on either side."""
    case = Case(n=90, m=16, kernel=9, batch=3)
    tensors, options = make_inputs(case, widest(backend))
    expected = nystrom_attention(*tensors, **options, backend=backend)
    left, right = 7, 30
    padded = [F.pad(x, (0, 0, left, right), value=torch.nan).requires_grad_() for x in tensors]
    mask = torch.zeros(3, 90 + left + right, dtype=torch.bool)
    mask[:, left : left + 90] = True
    got = nystrom_attention(*padded, **{**options, "mask": mask}, backend=backend)
    assert_close(got[:, :, left : left + 90], expected, ROUNDING[widest(backend)])
    assert got[:, :, :left].abs().max() == 0
    assert got[:, :, left + 90 :].abs().max() == 0
    for grad in torch.autograd.grad(got.sum(), padded):
        assert torch.isfinite(grad).all()
        assert grad[:, :, ~mask[0]].abs().max() == 0


@backends
def test_nystrom_attention_ignores_padding_between_tokens(backend):
    case = Case(n=120, m=16, batch=1)
    tensors, options = make_inputs(case, widest(backend))
    mask = torch.rand(1, 120) < 0.6
    got = nystrom_attention(*tensors, **{**options, "mask": mask}, backend=backend)
    compact = [x[:, :, mask[0]] for x in tensors]
    assert_close(
        got[:, :, mask[0]],
        nystrom_attention(*compact, **options, backend=backend),
        ROUNDING[widest(backend)],
    )


@pytest.mark.parametrize("init", ["matrix", "sequence"])
@backends
def test_nystrom_attention_ignores_batch_neighbours(backend, init):
    case = Case(n=131, m=16, kernel=7, batch=5, masks="short", settings={"pinv_init": init})
    tensors, options = make_inputs(case, widest(backend))
    tensors[0][0] *= 10  # a neighbour with another norm
    together = nystrom_attention(*tensors, **options, backend=backend)
    for b in range(5):
        alone = {**options, "mask": options["mask"][b : b + 1]}
        single = nystrom_attention(*(x[b : b + 1] for x in tensors), **alone, backend=backend)
        assert_close(together[b : b + 1], single, ROUNDING[widest(backend)])


@backends
def test_nystrom_attention_with_batch_init_depends_on_neighbours(backend):
    case = Case(n=64, m=8, batch=2, settings={"pinv_init": "batch", "pinv_iterations": 2})
    (q, k, v), options = make_inputs(case, widest(backend))
    q[0] *= 10
    together = nystrom_attention(q, k, v, **options, backend=backend)
    alone = nystrom_attention(q[1:], k[1:], v[1:], **options, backend=backend)
    assert relative_error(together[1:], alone) > 1e-3


@backends
def test_nystrom_attention_is_exact_up_to_m_tokens(backend):
    """L = M, and a short sequence beside a long one: softmax attention (Lemma 2)."""
    (q, k, v), _ = make_inputs(Case(n=100, m=64, batch=2), widest(backend))
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[1, 64:] = False
    got = nystrom_attention(q, k, v, num_landmarks=64, mask=mask, backend=backend)
    expected = F.scaled_dot_product_attention(*(x[1:, :, :64] for x in (q, k, v)))
    assert_close(got[1:, :, :64], expected, ROUNDING[widest(backend)])


@backends
@pytest.mark.parametrize("layout", ["tokens first", "last dimension strided", "expanded heads"])
def test_nystrom_attention_takes_any_strides(backend, layout):
    tensors, options = make_inputs(Case(n=131, m=16, kernel=7), widest(backend))
    if layout == "expanded heads":
        tensors = [x[:, :1].expand(-1, 2, -1, -1) for x in tensors]
    expected = nystrom_attention(*(x.contiguous() for x in tensors), **options, backend=backend)
    if layout == "tokens first":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    elif layout == "last dimension strided":
        tensors = [x.mT.contiguous().mT for x in tensors]
    assert_close(
        nystrom_attention(*tensors, **options, backend=backend), expected, ROUNDING[widest(backend)]
    )


@backends
def test_nystrom_attention_of_only_padding_is_zero(backend):
    tensors, options = make_inputs(Case(n=50, m=16, kernel=7, batch=3), widest(backend))
    mask = torch.ones(3, 50, dtype=torch.bool)
    mask[1] = False
    tensors = [x.requires_grad_() for x in tensors]
    output = nystrom_attention(*tensors, **{**options, "mask": mask}, backend=backend)
    assert output[1].abs().max() == 0
    for grad in torch.autograd.grad(output.square().sum(), tensors):
        assert torch.isfinite(grad).all()
        assert grad[1].abs().max() == 0
        assert grad[0].abs().max() > 0


@backends
def test_nystrom_attention_keeps_nan_in_its_sequence(backend):
    tensors, options = make_inputs(Case(n=50, m=16, kernel=7, batch=3), widest(backend))
    clean = nystrom_attention(*tensors, **options, backend=backend)
    for x in tensors:
        dirty = [t.clone() for t in tensors]
        next(t for t, o in zip(dirty, tensors, strict=True) if o is x)[1, :, 20] = torch.nan
        output = nystrom_attention(*dirty, **options, backend=backend)
        assert output[1].isnan().any(), "a NaN must not be lost"
        assert torch.equal(output[[0, 2]], clean[[0, 2]])


@backends
def test_nystrom_attention_of_identical_tokens_is_their_mean_value(backend):
    (q, k, v), options = make_inputs(Case(n=50, m=16), widest(backend))
    q, k = q[:, :, :1].expand(q.shape), k[:, :, :1].expand(k.shape)
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    output = nystrom_attention(q, k, v, **options, backend=backend)
    # kernel_2 is the flat 1/M matrix, which six steps bring close to its pseudo-inverse
    assert_close(output, v.mean(2, keepdim=True).expand(v.shape), 1e-3)
    for grad in torch.autograd.grad(output.square().sum(), (q, k, v)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("shift", [0, -1])
@backends_with(torch.float32, torch.float16, torch.bfloat16)
def test_nystrom_attention_survives_huge_logits(backend, shift, dtype):
    """Times 100, and all of them near -400, where exp of the padding's logit 0 would overflow."""
    (q, k, v), options = make_inputs(Case(n=131, m=16, masks="holes"), dtype)
    tensors = [x.requires_grad_() for x in (100 * q if shift == 0 else q / 8 - 100, k / 8 + 1, v)]
    output = nystrom_attention(*tensors, **options, backend=backend)
    assert torch.isfinite(output).all()
    for grad in torch.autograd.grad(output.sum(), tensors):
        assert torch.isfinite(grad).all()


@backends
def test_nystrom_attention_is_deterministic(backend):
    tensors, options = make_inputs(Case(n=700, m=32, kernel=7, masks="holes"), torch.float32)
    runs = [nystrom_attention(*tensors, **options, backend=backend) for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("scheme", [segment_means, sample_tokens, kmeans])
@backends
def test_nystrom_attention_takes_landmarks_of_every_scheme(backend, scheme):
    tensors, options = make_inputs(Case(n=131, m=16, masks="holes"), widest(backend))
    q, k, v = (x.requires_grad_() for x in tensors)
    given = (scheme(q, 16, options["mask"])[0], scheme(k, 16, options["mask"])[0])
    options["landmarks"] = given
    output = nystrom_attention(q, k, v, **options, backend=backend)
    assert_close(output, from_oracle(tensors, options), TOLERANCE[widest(backend)])
    own = nystrom_attention(q, k, v, **{**options, "landmarks": None}, backend=backend)
    (through, direct) = (torch.autograd.grad(x.square().sum(), q)[0] for x in (output, own))
    if scheme is segment_means:
        assert_close(output, own, ROUNDING[widest(backend)])
        assert_close(through, direct, 100 * TOLERANCE[widest(backend)])
    else:
        assert torch.isfinite(through).all()


def derivatives(function, query):
    """By torch.func.grad, by torch.func.jvp and by forward mode."""
    tangent = torch.ones_like(query)
    with torch.autograd.forward_ad.dual_level():
        output = function(torch.autograd.forward_ad.make_dual(query, tangent))
        forward = torch.autograd.forward_ad.unpack_dual(output).tangent
    backward = torch.func.grad(lambda q: function(q).sum())(query)
    return backward, torch.func.jvp(function, (query,), (tangent,))[1], forward


@pytest.mark.parametrize("attention", [nystrom_attention, clustered_attention])
def test_auto_takes_eager_for_derivatives_that_operations_lack(attention):
    (q, k, v), options = make_inputs(Case(n=40, m=8))
    if attention is clustered_attention:
        options = {"num_query_clusters": 4, "num_key_clusters": 4, "num_exact_keys": 4}

    def call(backend):
        return lambda x: attention(x, k, v, **options, backend=backend)

    both = (derivatives(call(backend), q) for backend in ("auto", "eager"))
    for found, right in zip(*both, strict=True):
        assert right.norm() > 0
        assert torch.equal(found, right)
    for transform in (torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(NotImplementedError, match=r"'blocked' has a backward alone.*'eager'"):
            transform(lambda x: call("blocked")(x).sum())(q)
    batch = torch.stack([q, 2 * q])
    with warnings.catch_warnings(action="ignore"):  # that vmap takes them one by one
        found = torch.vmap(call("blocked"))(batch)
    assert_close(found[1], call("eager")(2 * q), 1e-10)


@pytest.mark.parametrize("settings", [{"pinv_ridge": 0.1}, {"pinv_ridge": 1e-8}, {}])
@backends
def test_nan_stays_in_its_own_sequence(backend, settings):
    (q, k, v), options = make_inputs(Case(n=131, m=16, settings=settings), widest(backend))
    q, k = q / 100, k / 100  # kernel_2 is almost flat: a hard case for the ridge
    expected = nystrom_attention(q, k, v, **options, backend=backend)[1]
    q[0, 0, 5] = torch.nan
    output = nystrom_attention(q, k, v, **options, backend=backend)
    assert output[0, 0].isnan().all()
    assert torch.equal(output[1], expected)


@pytest.mark.parametrize("init", ["matrix", "sequence", "batch"])
@pytest.mark.parametrize("shape", [(0, 2, 40, 8), (2, 0, 40, 8), (2, 2, 40, 0)])
@backends
def test_nystrom_attention_takes_no_batch_no_heads_and_no_features(backend, shape, init):
    q = torch.randn(shape).requires_grad_()
    v = torch.randn(*shape[:3], 4).requires_grad_()
    output = nystrom_attention(q, q, v, num_landmarks=8, pinv_init=init, backend=backend)
    assert output.shape == v.shape
    assert output.isfinite().all()
    output.sum().backward()
    assert q.grad.shape == shape


@backends
def test_nystrom_attention_takes_empty_tensors(backend):
    q = torch.zeros(2, 3, 0, 8, requires_grad=True)
    output = nystrom_attention(q, q, q, backend=backend)
    assert output.shape == (2, 3, 0, 8)
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 0, 8)
    assert nystrom_attention(q, k, k, backend=backend).abs().max() == 0
    none = torch.randn(0, 3, 5, 8)
    assert nystrom_attention(none, none, none, backend=backend).shape == none.shape


def test_nystrom_attention_blocked_agrees_over_many_blocks():
    """More tokens than one block holds, and an odd rest."""
    case = Case(n=5003, m=48, kernel=33, batch=1, heads=8, dim=64, value_dim=64)
    tensors, options = make_inputs(case, torch.float32)
    grad_output = torch.randn_like(tensors[2])
    results = [
        [
            nystrom_attention(*tensors, **options, backend=b),
            *gradients(tensors, options, grad_output, b),
        ]
        for b in ("eager", "blocked")
    ]
    for eager, blocked in zip(*results, strict=True):
        assert_close(blocked, eager, 3e-5)
