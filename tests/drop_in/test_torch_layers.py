import copy
import io

import pytest
import torch
from torch import nn

import oracle
from cases import assert_close, relative_error
from nystromer import nystromize
from nystromer.drop_in.torch_layers import NystromMultiheadAttention

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own
M = 8
PADDED = torch.arange(50) >= torch.tensor([[50], [30], [6], [17]])  # torch's sense: True is padding


def attention(converted=True, min_length=1, conv_kernel_size=None, **options):
    """nn.MultiheadAttention of 24 features and 4 heads, exact or with M = 8."""
    module = nn.MultiheadAttention(24, 4, **{"batch_first": True, **options}).eval()
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    if not converted:
        return module
    return nystromize(module, M, min_length=min_length, conv_kernel_size=conv_kernel_size)


def tokens(batch=4, n=50, dim=24, **options):
    return torch.randn(batch, n, dim, **options)


def from_oracle(module, query, key, value, mask=None, query_mask=None):
    """The module's output by the NumPy oracle, float64."""
    weights, biases = module._projections()
    heads = []
    for x, weight, bias in zip((query, key, value), weights, biases, strict=True):
        y = x @ weight.T + (0 if bias is None else bias)
        heads.append(y.unflatten(2, (4, -1)).transpose(1, 2).detach().numpy())
    q, k, v = heads
    taps = None if module.nystrom_conv is None else module.nystrom_conv.detach().numpy()
    masks = {"mask": mask, "query_mask": query_mask}
    out = oracle.nystrom_attention(
        q, k, v, M, q.shape[-1] ** -0.5, conv_weight=taps,
        **{name: None if x is None else x.numpy() for name, x in masks.items()},
    )  # fmt: skip
    return module.out_proj(torch.from_numpy(out).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kdim": 10, "vdim": 7}, {"kdim": 10, "vdim": 7, "bias": False}],
)
def test_multihead_attention_agrees_with_the_oracle(options, padded):
    module = attention(**options).double()
    cross = "kdim" in options
    query = tokens(dtype=torch.float64)
    key = tokens(dim=10, dtype=torch.float64) if cross else query
    value = tokens(dim=7, dtype=torch.float64) if cross else query
    hidden = PADDED if padded else None
    output, weights = module(query, key, value, key_padding_mask=hidden)
    everything = torch.ones_like(PADDED)
    expected = from_oracle(
        module, query, key, value, mask=~PADDED if padded else everything,
        query_mask=everything if cross or not padded else ~PADDED,
    )  # fmt: skip
    assert weights is None
    assert_close(output, expected, 1e-11)


def test_multihead_attention_has_torch_layouts():
    module, x = attention(), tokens()
    expected = module(x, x, x, PADDED)[0]
    sequence_first = copy.deepcopy(module)
    sequence_first.batch_first = False
    y = x.transpose(0, 1)
    assert_close(sequence_first(y, y, y, PADDED)[0].transpose(0, 1), expected, 1e-6)
    for either in (module, sequence_first):
        assert_close(either(x[1], x[1], x[1], PADDED[1])[0], expected[1], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multihead_attention_takes_float_masks_of_torch(dtype):
    module, x = attention().to(dtype), tokens(dtype=dtype)
    expected = module(x, x, x, PADDED)[0]
    for low in (-torch.inf, torch.finfo(dtype).min, -1e9):
        mask = torch.zeros_like(PADDED, dtype=dtype).masked_fill(PADDED, low)
        assert torch.equal(module(x, x, x, mask)[0], expected)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("hidden", [None, PADDED[:, :50]])
@pytest.mark.parametrize("options", [{"num_landmarks": 50}, {"num_landmarks": 16}])
def test_multihead_attention_is_exact_for_short_sequences(options, hidden, cross):
    """L <= M, or L < 4 M = 64, against the module before its conversion."""
    module = attention(converted=False)
    x = tokens()
    key = tokens() if cross else x
    expected = module(x, key, key, hidden)[0]
    output = nystromize(module, **options)(x, key, key, hidden)[0]
    real = torch.ones_like(PADDED) if cross or hidden is None else ~hidden
    assert_close(output[real], expected[real], 1e-5)


@pytest.mark.parametrize(("min_length", "start"), [(None, 4 * M), (20, 20)])
def test_multihead_attention_is_nystrom_attention_from_min_length_on(min_length, start):
    exact = attention(converted=False)
    module = nystromize(copy.deepcopy(exact), M, min_length=min_length)
    for n in (start - 1, start):
        x = tokens(n=n)
        error = relative_error(module(x, x, x)[0], exact(x, x, x)[0])
        assert error < 1e-5 if n < start else error > 1e-2


def test_multihead_attention_never_depends_on_padding_or_neighbours():
    module, x = attention(min_length=20), tokens()
    expected = module(x, x, x, PADDED)[0]
    longer = torch.cat([x, 100 * tokens(n=9)], 1)
    padded = torch.cat([PADDED, torch.ones(4, 9, dtype=torch.bool)], 1)
    longer = torch.where(padded[..., None], 7.0, longer)
    output = module(longer, longer, longer, padded)[0]
    for i, real in enumerate(~PADDED):
        alone = x[i : i + 1, real]
        assert_close(module(alone, alone, alone)[0], expected[i : i + 1, real], 1e-5)
        assert_close(output[i, :50][real], expected[i, real], 1e-5)
        assert torch.equal(output[i, 50:], module.out_proj.bias.expand(9, -1))  # zero attention


def test_multihead_attention_treats_equal_positions_as_self_attention():
    """query is key, another value: an encoder that adds positions to both."""
    module, x, value = attention().double(), *torch.randn(2, 4, 50, 24, dtype=torch.float64)
    expected = from_oracle(module, x, x, value, mask=~PADDED, query_mask=~PADDED)
    assert_close(module(x, x, value, PADDED)[0], expected, 1e-11)


@pytest.mark.parametrize("conv_kernel_size", [None, 5])
def test_multihead_attention_gradients_agree_with_finite_differences(conv_kernel_size):
    module = attention(conv_kernel_size=conv_kernel_size, min_length=12).double().train()
    if conv_kernel_size:
        nn.init.normal_(module.nystrom_conv)
    x = torch.randn(3, 14, 24, dtype=torch.float64, requires_grad=True)
    hidden = torch.arange(14) >= torch.tensor([[14], [12], [5]])
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, given, (x, x, x, hidden))[0]

    assert torch.autograd.gradcheck(run, (x, *module.parameters()), fast_mode=True)


def test_multihead_attention_has_a_convolution_that_starts_at_zero():
    module, x = attention(converted=False), tokens()
    plain = nystromize(copy.deepcopy(module), M, min_length=1)
    with_taps = nystromize(module, M, min_length=1, conv_kernel_size=5)
    assert with_taps.state_dict().keys() - plain.state_dict().keys() == {"nystrom_conv"}
    assert with_taps.nystrom_conv.shape == (4, 5)
    assert torch.equal(with_taps(x, x, x, PADDED)[0], plain(x, x, x, PADDED)[0])
    nn.init.normal_(with_taps.nystrom_conv)
    y = x.double()
    expected = from_oracle(with_taps.double(), y, y, y, mask=~PADDED, query_mask=~PADDED)
    assert_close(with_taps(y, y, y, PADDED)[0], expected, 1e-11)


def test_multihead_attention_gives_every_parameter_a_gradient():
    module, x = attention(min_length=40, conv_kernel_size=3).train(), tokens(n=39)
    module(x, x, x)[0].sum().backward()
    assert not module.nystrom_conv.grad.any()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_multihead_attention_runs_in_half_precision_and_autocast(dtype):
    module, x = attention(conv_kernel_size=3), tokens()
    expected = module(x, x, x, PADDED)[0]
    with torch.autocast("cpu", dtype=dtype):
        output = module(x, x, x, PADDED)[0]
    assert output.dtype == dtype
    assert relative_error(output, expected) < 2e-2
    x = x.to(dtype)
    output = module.to(dtype)(x, x, x, PADDED)[0]
    assert output.dtype == dtype
    assert relative_error(output, expected) < 3e-2


def test_multihead_attention_keeps_weights_copies_and_files():
    module, x = attention(converted=False), tokens()
    state = module.state_dict()
    converted = nystromize(module, M, min_length=1)
    assert converted is module
    assert isinstance(converted, nn.MultiheadAttention)
    assert list(converted.state_dict()) == list(state)
    expected = converted(x, x, x)[0]
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    for again in (copy.deepcopy(converted), torch.load(file, weights_only=False)):
        assert type(again) is NystromMultiheadAttention
        assert torch.equal(again(x, x, x)[0], expected)
    other = attention(min_length=1)  # loaded after its conversion
    other.load_state_dict(state)
    assert torch.equal(other(x, x, x)[0], expected)
    assert "num_landmarks=8, exact below 1 tokens" in repr(converted)


def test_multihead_attention_can_be_initialised_anew():
    module = attention(conv_kernel_size=3)
    before = module.in_proj_weight.clone()
    module._reset_parameters()
    assert not torch.equal(module.in_proj_weight, before)
    assert not module._qkv_same_embed_dim  # still off torch's fast path


@pytest.mark.parametrize("padded", [False, True])
def test_multihead_attention_compiles_and_exports(padded):
    module, x = attention(min_length=20), tokens()
    hidden = PADDED if padded else None
    expected = module(x, x, x, hidden)[0]
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, x, x, hidden)[0], expected, 1e-6)
    exported = torch.export.export(module, (x, x, x, hidden)).module()
    assert_close(exported(x, x, x, hidden)[0], expected, 1e-6)


def encoder(**options):
    defaults = {"batch_first": True, "dim_feedforward": 32, "dropout": 0.1}
    layer = nn.TransformerEncoderLayer(24, 4, **{**defaults, **options})
    nested = not options.get("norm_first", False) and options.get("batch_first", True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"batch_first": False}])
def test_encoder_fast_path_does_not_bypass_nystrom_attention(options, padded, grad):
    """In evaluation without gradients torch calls no self_attn.forward, and nests padded input."""
    exact = encoder(**options)
    model = nystromize(copy.deepcopy(exact), M, min_length=1)
    calls = []
    forward = NystromMultiheadAttention.forward
    x = tokens() if options.get("batch_first", True) else tokens().transpose(0, 1)
    hidden = PADDED if padded else None
    with torch.set_grad_enabled(grad), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            NystromMultiheadAttention,
            "forward",
            lambda *args, **kwargs: calls.append(args[0]) or forward(*args, **kwargs),
        )
        output = model(x, src_key_padding_mask=hidden)
    with torch.no_grad():
        expected = exact(x, src_key_padding_mask=hidden)
        slow = model.train().requires_grad_(False)  # the slow path, with nothing dropped
        for module in slow.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trained = slow(x, src_key_padding_mask=hidden)
    assert calls == [layer.self_attn for layer in model.layers]
    real = torch.ones_like(PADDED) if hidden is None else ~hidden
    real = real if options.get("batch_first", True) else real.T
    assert_close(output[real], trained[real], 1e-6)
    assert relative_error(output[real], expected[real]) > 1e-3


@pytest.mark.parametrize("padded", [False, True])
def test_encoder_is_the_exact_one_for_short_sequences(padded):
    exact, x = encoder(), tokens()
    model = nystromize(copy.deepcopy(exact), 50)
    hidden = PADDED if padded else None
    real = torch.ones_like(PADDED) if hidden is None else ~hidden
    with torch.no_grad():
        output = model(x, src_key_padding_mask=hidden)
        assert_close(output[real], exact(x, src_key_padding_mask=hidden)[real], 1e-5)


def test_encoder_of_a_converted_layer_nests_nothing():
    layer = nystromize(nn.TransformerEncoderLayer(24, 4, batch_first=True), M, min_length=1)
    with pytest.warns(UserWarning, match="self.use_nested_tensor is False"):
        model = nn.TransformerEncoder(layer, 2).eval()
    x = tokens()
    with torch.no_grad():
        assert model(x, src_key_padding_mask=PADDED).shape == x.shape


def test_encoder_compiles_exports_and_trains():
    model, x = nystromize(encoder(), M, min_length=20), tokens()
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=PADDED)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x, src_key_padding_mask=PADDED), expected, 1e-6)
        exported = torch.export.export(model, (x,)).module()
        assert_close(exported(x), model(x), 1e-6)
    model.train()(x, src_key_padding_mask=PADDED).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_multihead_attention_refuses_what_it_cannot_keep():
    module, x = attention(), tokens()
    square = torch.zeros(50, 50)
    for options, message in [
        ({"need_weights": True}, "need_weights=True is impossible .* leave the argument out"),
        ({"attn_mask": square}, "an `attn_mask` .* is impossible .* pass padding as"),
        ({"is_causal": True}, "is_causal=True .* is impossible with Nyström attention"),
        ({"key_padding_mask": -PADDED.float()}, "0 at real tokens and -inf .* a bias"),
        ({"key_padding_mask": PADDED[:, :9]}, r"must have shape \[B, N\] = \[4, 50\], got \[4, 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            module(x, x, x, **options)
    with pytest.raises(TypeError, match=r"must be bool with True at padding.* got torch\.int64"):
        module(x, x, x, PADDED.long())
    nested = torch.nested.nested_tensor([x[0], x[1, :9]])
    with pytest.raises(ValueError, match="must be padded tensors, got nested ones"):
        module(nested, nested, nested)
    with pytest.raises(ValueError, match=r"`query` must be \[B, N, E\] .* got 4 dimensions"):
        module(x[None], x[None], x[None])
    with pytest.raises(ValueError, match="`conv_kernel_size` needs self-attention"):
        attention(conv_kernel_size=3)(x, tokens(), x)


@pytest.mark.parametrize("options", [{"mask": torch.zeros(50, 50)}, {"mask": "causal"}])
def test_encoder_refuses_masks_of_pairs(options):
    model = nystromize(encoder(), M)
    if options["mask"] == "causal":
        mask = nn.Transformer.generate_square_subsequent_mask(50)
        options = {"mask": mask, "is_causal": True}
    with torch.no_grad(), pytest.raises(ValueError, match="`src_mask` of an encoder layer"):
        model(tokens(), **options)
