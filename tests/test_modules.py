import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cases import BACKENDS, assert_close, relative_error
from nystromer import NystromAttention, nystrom_attention


def small(**options):
    return NystromAttention(24, 4, **{"num_landmarks": 8, "conv_kernel_size": 5, **options})


def test_nystrom_attention_module_is_projections_around_the_operation():
    module, x = small(head_dim=7).double(), torch.randn(2, 50, 24, dtype=torch.float64)
    mask = torch.rand(2, 50) < 0.7
    q, k, v = (
        p(x).view(2, 50, 4, 7).transpose(1, 2)
        for p in (module.q_proj, module.k_proj, module.v_proj)
    )
    heads = nystrom_attention(
        q, k, v, num_landmarks=8, mask=mask, conv_weight=module.conv_weight, backend="eager"
    )
    expected = module.out_proj(heads.transpose(1, 2).reshape(2, 50, 28))
    assert_close(module(x, mask), expected, 1e-12)


def test_nystrom_attention_module_rows_are_those_of_its_map():
    module, x = small(conv_kernel_size=None).double(), torch.randn(2, 50, 24, dtype=torch.float64)
    rows = module.attention_rows(x, [0, 9])
    values = module.v_proj(x).view(2, 50, 4, 6).transpose(1, 2)
    expected = module.out_proj((rows @ values).transpose(1, 2).reshape(2, 2, 24))
    assert_close(module(x)[:, [0, 9]], expected, 1e-12)


def test_nystrom_attention_module_keys_and_options():
    assert set(small().state_dict()) == {
        "conv_weight",
        *(f"{p}_proj.{x}" for p in ("q", "k", "v", "out") for x in ("weight", "bias")),
    }
    assert set(small(bias=False, conv_kernel_size=None).state_dict()) == {
        f"{p}_proj.weight" for p in ("q", "k", "v", "out")
    }
    assert "num_heads=4, head_dim=6, num_landmarks=8" in repr(small())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nystrom_attention_module_runs_in_half_precision(dtype):
    module, x = small(), torch.randn(2, 50, 24)
    expected = module(x)
    output = module.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert relative_error(output, expected) < 2e-2


def test_nystrom_attention_module_trains_under_autocast():
    module, x = small(), torch.randn(2, 50, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(x).float().square().mean()
    loss.backward()
    for name, parameter in module.named_parameters():
        # K's bias moves all logits of a row alike, so softmax gives it no gradient of its own
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0 or name == "k_proj.bias", name


def test_nystrom_attention_module_drops_out_its_output_in_training_only():
    module, x = small(dropout=0.5), torch.randn(1, 50, 24)
    assert (module(x) == 0).float().mean() > 0.3
    module.eval()
    assert torch.equal(module(x), module(x))
    assert (module(x) == 0).float().mean() < 0.01


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("masked", [False, True])
def test_nystrom_attention_module_compiles_without_a_graph_break(backend, masked):
    module, x = small(backend=backend), torch.randn(2, 50, 24, requires_grad=True)
    mask = torch.arange(50) < torch.tensor([[50], [20]]) if masked else None
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected, got = module(x, mask), compiled(x, mask)
    assert_close(got, expected, 1e-6)
    grad = torch.randn_like(expected)
    pair = (torch.autograd.grad(y, [x, *module.parameters()], grad) for y in (got, expected))
    for a, b in zip(*pair, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nystrom_attention_module_works_under_activation_checkpointing(backend):
    module, x = small(backend=backend), torch.randn(2, 50, 24, requires_grad=True)
    expected = torch.autograd.grad(module(x).square().sum(), x)
    output = checkpoint(module, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(output.square().sum(), x)[0], expected[0])


def test_nystrom_attention_module_exports_with_any_length():
    module, x = small().eval(), torch.randn(2, 50, 24)
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(module, (x,), dynamic_shapes=({1: length},)).module()
    for n in (50, 7, 131):
        x = torch.randn(2, n, 24)
        assert_close(exported(x), module(x), 1e-6)


def test_nystrom_attention_module_knows_its_output_shape_on_the_meta_device():
    with torch.device("meta"):
        assert small()(torch.randn(2, 50, 24)).shape == (2, 50, 24)


def test_nystrom_attention_module_errors():
    for arguments, options, message in [
        ((24, 5), {}, "`embed_dim` must be a multiple of num_heads=5, got 24"),
        ((0, 5), {}, "`embed_dim` must be at least 1, got 0"),
        ((24, 0), {}, "`num_heads` must be at least 1, got 0"),
        ((24, 4), {"head_dim": 0}, "`head_dim` must be at least 1, got 0"),
        ((24, 4), {"num_landmarks": 0}, "`num_landmarks` must be at least 1, got 0"),
        ((24, 4), {"pinv_iterations": 0}, "`pinv_iterations` must be at least 1, got 0"),
        ((24, 4), {"conv_kernel_size": 4}, "`conv_kernel_size` must be odd, got 4"),
        ((24, 4), {"backend": "fast"}, "`backend` must be one of 'auto', .* got 'fast'"),
    ]:
        with pytest.raises(ValueError, match=message):
            NystromAttention(*arguments, **options)
    for x in (torch.randn(24), torch.randn(1, 50, 23)):
        with pytest.raises(ValueError, match=r"`x` must be \[B, N, E\] with E = 24, got \[.*2"):
            small()(x)
    with pytest.raises(TypeError, match=r"`x` must be a tensor \[B, N, E\], got list"):
        small()([[1.0]])
    with pytest.raises(ValueError, match="`mask` must be bool"):
        small()(torch.randn(2, 50, 24), torch.ones(2, 50))


@pytest.mark.parametrize("shape", [(50,), (2, 3, 50)], ids=str)
def test_nystrom_attention_module_takes_one_sequence_and_batches_of_batches(shape):
    module, x = small(), torch.randn(*shape, 24)
    mask = torch.rand(shape) < 0.7
    flat = x.reshape(-1, 50, 24)
    for real in (None, mask):
        expected = module(flat, None if real is None else real.reshape(-1, 50))
        assert_close(module(x, real), expected.view(x.shape), 1e-6)
    rows, expected = module.attention_rows(x, [0, 9], mask), module.attention_rows(flat, [0, 9])
    assert rows.shape == (*shape[:-1], *expected.shape[1:])


def test_nystrom_attention_module_is_traced_by_torch_fx():
    module, x = small(), torch.randn(2, 50, 24)
    mask = torch.rand(2, 50) < 0.7
    traced = torch.fx.symbolic_trace(module)
    assert torch.equal(traced(x), module(x))
    assert torch.equal(traced(x, mask), module(x, mask))
    assert nystrom_attention in {node.target for node in traced.graph.nodes}


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_nystrom_attention_module_is_traced_by_torch_jit(backend):
    module, x = small(backend=backend), torch.randn(2, 50, 24)
    with warnings.catch_warnings(action="ignore"):  # that shapes are taken for constants
        traced = torch.jit.trace(module, x)
    assert_close(traced(2 * x), module(2 * x), 1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_nystrom_attention_module_cannot_be_scripted(wrapped):
    module = torch.nn.Sequential(small()) if wrapped else small()
    with (
        warnings.catch_warnings(action="ignore"),  # torch.jit.script is deprecated
        pytest.raises(NotImplementedError, match=r"cannot compile NystromAttention.* torch.export"),
    ):
        torch.jit.script(module)


def test_torch_fx_is_told_to_wrap_the_function():
    class Own(torch.nn.Module):
        def forward(self, x):
            return nystrom_attention(x, x, x)

    with pytest.raises(TypeError, match=r"proxy for `query`; write torch.fx.wrap .* torch.export"):
        torch.fx.symbolic_trace(Own())
