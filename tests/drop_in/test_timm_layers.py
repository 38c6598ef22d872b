import copy
import io

import pytest
import torch
from torch import nn

from cases import assert_close, relative_error
from nystromer import nystrom_attention, nystromize
from nystromer.drop_in.timm_layers import NystromVisionAttention
from vision import Block, RopeAttention, VisionAttention, rotary

M = 8
KINDS = [
    lambda: VisionAttention(),
    lambda: VisionAttention(qk_norm=True, scale_norm=True, head_dim=4, bias=False),
    lambda: RopeAttention(),
    lambda: RopeAttention(rotate_half=True, qk_norm=True, fused=False),
    lambda: RopeAttention(gated=True, scale_norm=True),
]


def made(kind):
    """A module in evaluation mode whose weights, all of them, are random."""
    module = KINDS[kind]().eval()
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


def options_of(module, n=50):
    has_rope = isinstance(module, RopeAttention)
    return [{}, {"rope": rotary(n, module.rotate_half)}] if has_rope else [{}]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_vision_attention_is_the_exact_one_with_another_operation(kind, monkeypatch):
    """Below min_length the module as it was, else the module with its operation replaced."""
    module, x = made(kind).double(), torch.randn(2, 50, 24, dtype=torch.float64)
    for options in options_of(module):
        options = {name: y.double() for name, y in options.items()}
        exact = module(x, **options)
        assert_close(nystromize(copy.deepcopy(module), M, min_length=51)(x, **options), exact, 1e-6)
        assert_close(nystromize(copy.deepcopy(module), 50, min_length=1)(x, **options), exact, 1e-6)
        output = nystromize(copy.deepcopy(module), M, min_length=50)(x, **options)
        with monkeypatch.context() as patch:
            patch.setattr(
                "torch.nn.functional.scaled_dot_product_attention",
                lambda q, k, v, *args: nystrom_attention(q, k, v, num_landmarks=M),
            )
            assert_close(output, module(x, **options), 1e-6)
        assert relative_error(output, exact) > 1e-2


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_vision_attention_keeps_weights_copies_and_files(kind):
    module, x = made(kind), torch.randn(2, 50, 24)
    state = copy.deepcopy(module.state_dict())
    converted = nystromize(module, M, min_length=1)
    assert converted is module
    assert list(converted.state_dict()) == list(state)
    expected = converted(x)
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    for again in (copy.deepcopy(converted), torch.load(file, weights_only=False)):
        assert torch.equal(again(x), expected)
    other = nystromize(KINDS[kind]().eval(), M, min_length=1)  # loaded after its conversion
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)
    assert "num_landmarks=8, exact below 1 tokens" in repr(converted)


def test_vision_attention_trains_with_its_convolution():
    blocks = nn.Sequential(*(Block(made(kind)) for kind in range(len(KINDS))))
    nystromize(blocks, M, min_length=50, conv_kernel_size=5)
    plain = nystromize(copy.deepcopy(blocks), M, min_length=50)
    x = torch.randn(2, 50, 24)
    assert torch.equal(blocks(x), plain(x))
    assert len(blocks.state_dict()) == len(plain.state_dict()) + len(KINDS)
    for n, some in ((50, True), (49, False)):  # all exact below 50
        blocks.zero_grad()
        blocks.train()(x[:, :n]).square().sum().backward()
        for name, parameter in blocks.named_parameters():
            assert parameter.grad.isfinite().all(), name
            if "nystrom_conv" in name:
                assert parameter.grad.any() == some


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_vision_attention_compiles_exports_and_autocasts(kind):
    module, x = nystromize(Block(made(kind)), M, min_length=20), torch.randn(2, 50, 24)
    expected = module(x)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), expected, 1e-6)
    length = torch.export.Dim("length", min=20, max=4096)
    exported = torch.export.export(module, (x,), dynamic_shapes=({1: length},)).module()
    for n in (50, 131):
        x = torch.randn(2, n, 24)
        assert_close(exported(x), module(x), 1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(module(x), exported(x)) < 3e-2
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_conversion_draws_no_random_numbers_and_changes_no_weight():
    module = made(0)
    state, numbers = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    nystromize(module.train(), M)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert module.training
    for name, x in module.state_dict().items():
        assert torch.equal(x, state[name]), name


@pytest.mark.parametrize("setting", ["meta", "double", "half", "autocast"])
def test_conversion_works_wherever_the_weights_are(setting):
    module = made(2)
    if setting == "meta":
        with torch.device("meta"):
            assert nystromize(module.to("meta"), M)(torch.randn(2, 50, 24)).shape == (2, 50, 24)
    elif setting == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nystromize(module, M)
    else:
        nystromize(getattr(module, setting)(), M)
    assert isinstance(module, NystromVisionAttention)


class Causal(VisionAttention):
    def forward(self, x):
        return super().forward(x, is_causal=True)


class OnImages(VisionAttention):
    def forward(self, x):
        return super().forward(x.flatten(1, 2)).reshape(x.shape)


class WithWeights(VisionAttention):
    def forward(self, x):
        return super().forward(x), None


def with_part(name, part):
    module = VisionAttention()
    setattr(module, name, part)
    return module


class OtherNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.query = 4, nn.Linear(24, 24)


class Projections(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv = 4, nn.Linear(24, 72)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (with_part("relative_position_bias_table", nn.Parameter(torch.zeros(9, 4))),
         "it has relative_position_bias_table, which no plain attention"),
        (with_part("rel_pos", nn.Linear(2, 4)), "it has rel_pos, which no plain attention"),
        (with_part("window_size", (7, 7)), "it attends within windows"),
        (with_part("ws", 7), "it attends within windows"),
        (Causal(), "it computes something else than softmax attention"),
        (WithWeights(), "it computes something else than softmax attention"),
        (OnImages(), r"it could not be tried on tokens \[1, 50, E\]"),
        (OtherNames(), "it has query, which no plain attention"),
        (Projections(), "it has other projections than `qkv`"),
    ],
)  # fmt: skip
def test_vision_attention_of_another_kind_is_refused(module, reason):
    kind = type(module)
    with pytest.raises(ValueError, match=f"Nyström attention is impossible in 1 of 1 .*{reason}"):
        nystromize(Block(module), M)
    assert type(module) is kind


def test_vision_attention_refuses_masks_and_biases():
    plain, rope = (nystromize(Block(made(kind)), M) for kind in (0, 2))
    x, pairs = torch.randn(2, 50, 24), torch.zeros(50, 50)
    for module in (plain, rope):
        module(x, attn_mask=None, is_causal=False, shared_rel_pos_bias=None)
        for options in ({"attn_mask": pairs}, {"is_causal": True}, {"shared_rel_pos_bias": pairs}):
            (name,) = options
            with pytest.raises(ValueError, match=f"`{name}` is impossible with Nyström attention"):
                module(x, **options)
