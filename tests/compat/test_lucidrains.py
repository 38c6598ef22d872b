"""Against the real package nystrom-attention 0.0.14."""

import inspect

import nystrom_attention as old
import pytest
import torch

from cases import assert_close, relative_error
from nystromer import nystrom_attention
from nystromer.compat import lucidrains as new

SIZES = {"dim": 48, "dim_head": 12, "heads": 4, "num_landmarks": 16, "dropout": 0.1}


def twins(kind="NystromAttention", **options):
    theirs = getattr(old, kind)(**options).eval()
    ours = getattr(new, kind)(**options).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_same(theirs, ours, x, mask=None):
    """Outputs within 1e-4, gradients of input and weights within 1e-3, relative."""
    runs = []
    for module in (theirs, ours):
        inputs = x.clone().requires_grad_()
        output = module(inputs, mask=mask)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(output, [inputs, *module.parameters()], grad)
        runs.append((output, *gradients))
    expected, got = runs
    assert_close(got[0], expected[0], 1e-4)
    for g, e in zip(got[1:], expected[1:], strict=True):
        assert_close(g, e, 1e-3, "gradient")


def test_legacy_equals_the_package_as_transmil_calls_it():
    torch.set_num_threads(2)
    options = {"dim": 512, "dim_head": 64, "heads": 8, "num_landmarks": 256}
    theirs, ours = twins(**options, pinv_iterations=6, residual=True, dropout=0.1)
    assert_same(theirs, ours, torch.randn(1, 1025, 512))
    torch.set_num_threads(1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [5, 16, 17, 64, 100])
def test_legacy_equals_the_package(n, masked):
    mask = torch.arange(n) < torch.tensor([[n], [n // 2 + 1]]) if masked else None
    for options in ({}, {"residual": False, "pinv_iterations": 3}, {"residual_conv_kernel": 5}):
        assert_same(*twins(**SIZES, **options), torch.randn(2, n, 48), mask)


@pytest.mark.parametrize("kind", ["Nystromformer", "Nystromer"])
def test_legacy_stack_equals_the_package(kind):
    theirs = getattr(old, kind, old.Nystromformer)(dim=24, depth=2, heads=2, num_landmarks=16)
    ours = getattr(new, kind)(dim=24, depth=2, heads=2, num_landmarks=16)
    ours.load_state_dict(theirs.state_dict())
    assert_same(theirs, ours, torch.randn(2, 50, 24))


@pytest.mark.parametrize("kind", ["NystromAttention", "Nystromformer"])
def test_signatures_are_the_packages_plus_mode_and_backend(kind):
    theirs, ours = (inspect.signature(getattr(p, kind)).parameters for p in (old, new))
    assert [(p.name, p.default) for p in ours.values()] == [
        *((p.name, p.default) for p in theirs.values()),
        ("mode", "legacy"),
        ("backend", "auto"),
    ]


@pytest.mark.parametrize("n", [32, 37])
def test_legacy_drops_out_what_the_package_does(n):
    theirs, ours = twins(**{**SIZES, "dropout": 0.3})
    x = torch.randn(2, n, 48)
    outputs = []
    for module in (theirs.train(), ours.train()):
        torch.manual_seed(1)
        outputs.append(module(x))
    assert_close(outputs[1], outputs[0], 1e-4)


def test_one_mask_serves_a_batch():
    theirs, ours = twins(**SIZES)
    assert_same(theirs, ours, torch.randn(2, 37, 48), torch.arange(37)[None] < 20)


def test_eager_has_second_derivatives_and_gradients_of_samples():
    theirs, ours = twins(**SIZES)
    ours = new.NystromAttention(**SIZES, backend="eager")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 48, requires_grad=True)
    seconds = []
    for module in (theirs.eval(), ours.eval()):
        (grad,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert_close(seconds[1], seconds[0], 1e-2)

    def loss(weights, sample):
        return torch.func.functional_call(ours, weights, (sample[None],)).square().sum()

    weights = {name: w.detach() for name, w in ours.named_parameters()}
    found = torch.vmap(torch.func.grad(loss), (None, 0))(weights, x.detach())
    one = torch.func.grad(loss)(weights, x[1].detach())
    assert_close(found["to_qkv.weight"][1], one["to_qkv.weight"], 1e-4)


def test_legacy_attention_maps_equal_the_package():
    theirs, ours = twins(**SIZES)
    x = torch.randn(2, 50, 48)
    for name in ("return_attn", "return_attn_matrices"):
        with pytest.warns(UserWarning, match=f"{name}=True keeps .* attention_rows"):
            got = ours(x, **{name: True})
        expected = theirs(x, **{name: True})
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (3, 16, 16)])
def test_moore_penrose_iter_pinv_equals_the_package(shape):
    from nystrom_attention.nystrom_attention import moore_penrose_iter_pinv

    x = torch.softmax(torch.randn(shape), -1)
    torch.testing.assert_close(new.moore_penrose_iter_pinv(x, 5), moore_penrose_iter_pinv(x, 5))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["legacy", "fixed"])
@pytest.mark.parametrize("n", [10, 50])
def test_attention_rows_are_rows_of_the_map(n, mode, masked):
    module = new.NystromAttention(**SIZES, mode=mode).eval()
    x, mask = torch.randn(2, n, 48), torch.arange(n) < torch.tensor([[n], [n // 2 + 1]])
    mask = mask if masked else None
    with pytest.warns(UserWarning, match="return_attn=True keeps"):
        _, attention_map = module(x, mask=mask, return_attn=True)
    left = attention_map.shape[2] - n
    rows = module.attention_rows(x, [0, 3], mask)
    expected = attention_map[:, :, [left, left + 3], left:]
    assert_close(rows, expected, 1e-5)


def test_fixed_is_nystrom_attention_and_needs_no_padding():
    module = new.NystromAttention(**SIZES, mode="fixed").eval()
    x = torch.randn(2, 50, 48)
    q, k, v = (t.view(2, 50, 4, 12).transpose(1, 2) for t in module.to_qkv(x).chunk(3, -1))
    taps = module.res_conv.weight[:, 0, :, 0]
    settings = {"num_landmarks": 16, "pinv_init": "sequence", "conv_weight": taps}
    heads = nystrom_attention(q, k, v, **settings, backend="eager")
    expected = module.to_out(heads.transpose(1, 2).flatten(2))
    assert_close(module(x), expected, 1e-5)
    assert_close(module(x)[:1], module(x[:1]), 1e-6)
    padded = torch.cat([torch.randn(2, 9, 48), x], 1)
    mask = torch.arange(59).expand(2, -1) >= 9
    assert_close(module(padded, mask=mask)[:, 9:], module(x), 1e-5)


def test_fixed_factors_multiply_to_its_output():
    module = new.NystromAttention(**SIZES, residual=False, mode="fixed").eval()
    x = torch.randn(2, 50, 48)
    with pytest.warns(UserWarning, match="return_attn_matrices"):
        output, (kernel_1, inverse, kernel_3) = module(x, return_attn_matrices=True)
    v = module.to_qkv(x)[..., 96:].view(2, 50, 4, 12).transpose(1, 2)
    heads = kernel_1 @ inverse @ kernel_3 @ v
    assert_close(output, module.to_out(heads.transpose(1, 2).flatten(2)), 1e-5)


@pytest.mark.parametrize("mode", ["legacy", "fixed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_works_where_the_package_crashes(mode, dtype, masked):
    module, x = new.NystromAttention(**SIZES, mode=mode).eval(), torch.randn(2, 50, 48)
    mask = torch.arange(50) < torch.tensor([[50], [30]]) if masked else None
    expected = module(x, mask=mask)
    output = module.to(dtype)(x.to(dtype), mask=mask)
    assert output.dtype == dtype
    assert relative_error(output, expected) < 2e-2
    with pytest.raises(RuntimeError, match="expected scalar type"):
        old.NystromAttention(**SIZES).to(dtype)(x.to(dtype))


def test_errors():
    with pytest.raises(ValueError, match="`mode` must be 'legacy' or 'fixed', got 'new'"):
        new.NystromAttention(64, mode="new")
    module = new.NystromAttention(**SIZES)
    with pytest.raises(ValueError, match=r"`rows` must lie in 0 ... 49 .* got 50 ... 50"):
        module.attention_rows(torch.randn(1, 50, 48), [50])
    with pytest.raises(ValueError, match="`mask` must be bool"):
        module(torch.randn(1, 50, 48), mask=torch.ones(1, 50))
