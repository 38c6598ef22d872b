"""Every model: alone and in a batch alike; TransMIL against nystrom-attention and torchmil."""

import subprocess
from math import ceil, sqrt

import nystrom_attention as old
import pytest
import torch
import torchmil.models
from torch.nn import functional as F

from memory import number_printed
from nystromer.compat.lucidrains import NystromAttention
from nystromer.mil.models import MODELS, TransMIL, build_model, load_transmil, pad_bags
from nystromer.mil.models.short_bags import short_bags

WIDTH, CLASSES = 24, 3
SMALL = {"embed_dim": 32, "num_landmarks": 8, "num_heads": 4, "conv_kernel_size": 5}


def small(name, **options):
    options |= SMALL if name.startswith("transmil") else {"embed_dim": 32}
    return build_model(name, WIDTH, CLASSES, **options).eval()


def bag(n, width=WIDTH):
    return torch.randn(n, width)


def gradients(model, output, *inputs):
    weights = torch.arange(1.0, output.numel() + 1).view_as(output)
    return torch.autograd.grad((output * weights).sum(), [*inputs, *model.parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_a_bag_in_a_batch_gets_what_it_gets_alone(name):
    model = small(name)
    bags = [bag(n) for n in (1, 30, 7, 64)]
    batch, mask = pad_bags([x.clone().requires_grad_() for x in bags])
    batch = batch.detach().masked_fill(~mask[..., None], 7.5).requires_grad_()  # junk at padding
    together = model(batch, mask)
    grad_batch, *grad_weights = gradients(model, together, batch)
    total = [torch.zeros_like(x) for x in grad_weights]
    for i, x in enumerate(bags):
        x = x[None].requires_grad_()
        alone = model(x)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-5, atol=1e-5)
        weights = torch.arange(1.0, together.numel() + 1).view_as(together)[i : i + 1]
        grad, *grads = torch.autograd.grad((alone * weights).sum(), [x, *model.parameters()])
        largest = grad.abs().max()
        torch.testing.assert_close(
            grad_batch[i, : x.shape[1]] / largest, grad[0] / largest, rtol=1e-5, atol=1e-5
        )
        total = [a + b for a, b in zip(total, grads, strict=True)]
    assert not grad_batch[~mask].any()
    for a, b in zip(grad_weights, total, strict=True):
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_real_patches_may_stand_anywhere(name):
    model, x = small(name), bag(20)
    spread = torch.full((1, 33, WIDTH), 7.5)
    mask = torch.zeros(1, 33, dtype=torch.bool)
    mask[0, torch.randperm(33)[:20].sort().values] = True
    spread[mask] = x
    torch.testing.assert_close(model(spread, mask), model(x[None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_features_are_cast_by_the_first_layer(name):
    model, x = small(name), bag(50).half()[None]
    torch.testing.assert_close(model(x), model(x.float()))
    assert pad_bags([x[0], x[0, :3]])[0].dtype == torch.float16


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_bag_is_refused(name):
    model = small(name)
    with pytest.raises(ValueError, match="with D = 24, the width that this model was made for"):
        model(torch.randn(1, 5, 25))
    with pytest.raises(ValueError, match="got none in bag 1 of the batch"):
        model(torch.randn(2, 5, WIDTH), torch.tensor([[True] * 5, [False] * 5]))
    with pytest.raises(ValueError, match="at least one patch, got none in bag 0"):
        model(torch.randn(1, 0, WIDTH))
    with pytest.raises(ValueError, match=r"`mask` must be bool \[B, N\] = \[2, 5\]"):
        model(torch.randn(2, 5, WIDTH), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"at least one patch, got \[0, 24\] from slide 7"):
        pad_bags([bag(3), bag(0)], ["slide 3", "slide 7"])
    with pytest.raises(
        ValueError, match=r"share width and dtype, got 24 .* from a and 25 .* from b"
    ):
        pad_bags([bag(3), bag(3, 25)], ["a", "b"])


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"must be one of transmil, .*, got 'clam'"):
        build_model("clam", 3, 2)
    with pytest.raises(ValueError, match="`pool` must be 'mean' or 'max', got 'sum'"):
        build_model("mean", 3, 2, pool="sum")
    with pytest.raises(ValueError, match="`mode` must be one of fixed, legacy, exact, got 'old'"):
        TransMIL(3, 2, mode="old")
    with pytest.raises(ValueError, match="`embed_dim` must be a multiple of num_heads=8, got 12"):
        TransMIL(3, 2, embed_dim=12)
    with pytest.raises(ValueError, match="`num_landmarks` must be at least 1, got 0"):
        TransMIL(3, 2, num_landmarks=0)


@pytest.mark.parametrize("mode", ["fixed", "legacy", "exact"])
@pytest.mark.parametrize("kernel", [None, 1, 33])
def test_the_class_row_is_the_first_row_of_the_last_layer(mode, kernel):
    options = SMALL | {"mode": mode, "conv_kernel_size": kernel}
    model = TransMIL(WIDTH, CLASSES, **options).double().eval()
    for bags in ([1], [6], [7], [9], [300], [1, 300, 7, 64]):
        batch, mask = pad_bags([bag(n).double() for n in bags])
        layer, x, lengths = list(model.layers(model.embed(batch), mask))[-1]
        x.retain_grad()
        row, same = layer.class_row(x, lengths), layer(x, lengths)[:, 0]
        torch.testing.assert_close(row, same, rtol=1e-9, atol=1e-9)
        weights = (x, *layer.parameters())
        grads, same_grads = (
            torch.autograd.grad((y * (1 + batch[:, 0, :1])).sum(), weights, retain_graph=True)
            for y in (row, same)
        )
        torch.testing.assert_close(grads, same_grads, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("tokens", [2, 10, 15, 16])
@pytest.mark.parametrize("away", [False, True])  # from one another, so that zeros are read most
def test_short_bags_in_legacy_mode_need_no_padding(tokens, away):
    attention = old.NystromAttention(32, 8, 4, num_landmarks=16, residual_conv_kernel=5).double()
    ours = NystromAttention(32, 8, 4, num_landmarks=16, residual_conv_kernel=5).double()
    if away:
        with torch.no_grad():
            attention.to_qkv.weight[32:64] = -attention.to_qkv.weight[:32]
    ours.load_state_dict(attention.state_dict())
    x = 3 * torch.randn(3, tokens, 32, dtype=torch.float64)
    alone = torch.cat([attention(bag[None]) for bag in x])
    torch.testing.assert_close(short_bags(ours, x), alone, rtol=1e-9, atol=1e-9)


def test_features_of_any_dtype_are_embedded_by_blocks(monkeypatch):
    monkeypatch.setattr("nystromer.mil.models.batch.BLOCK", 7)
    for name in MODELS:
        model, x = small(name), bag(50).half()[None]
        torch.testing.assert_close(model(x), model(x.float()))


class PaperTransMIL(torch.nn.Module):
    """Algorithm 2 of the paper on nystrom-attention 0.0.14, for one bag: what ours must equal."""

    def __init__(self, width, classes, dim, heads, landmarks, kernel):
        super().__init__()
        options = {"dim": dim, "dim_head": dim // heads, "heads": heads, "residual": True}
        options |= {"num_landmarks": landmarks, "residual_conv_kernel": kernel, "dropout": 0.1}
        self._fc1 = torch.nn.Sequential(torch.nn.Linear(width, dim), torch.nn.ReLU())
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, dim))
        self.pos_layer = torch.nn.ModuleDict(
            {
                name: torch.nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim)
                for name, k in (("proj", 7), ("proj1", 5), ("proj2", 3))
            }
        )
        for name in ("layer1", "layer2"):
            attention = old.NystromAttention(**options)
            block = {"norm": torch.nn.LayerNorm(dim), "attn": attention}
            self.add_module(name, torch.nn.ModuleDict(block))
        self.norm = torch.nn.LayerNorm(dim)
        self._fc2 = torch.nn.Linear(dim, classes)

    def forward(self, bag):
        x = self._fc1(bag)
        side = ceil(sqrt(len(x)))
        x = torch.cat([self.cls_token[0], x, x[: side**2 - len(x)]])[None]
        x = x + self.layer1["attn"](self.layer1["norm"](x))
        grid = x[:, 1:].mT.reshape(1, -1, side, side)
        grid = grid + sum(convolution(grid) for convolution in self.pos_layer.values())
        x = torch.cat([x[:, :1], grid.flatten(2).mT], 1)
        x = x + self.layer2["attn"](self.layer2["norm"](x))
        return self._fc2(self.norm(x)[:, 0])


@pytest.mark.parametrize("prefix", ["", "model.", "model.net."])
def test_legacy_gives_the_numbers_of_published_weights(prefix, tmp_path):
    published = PaperTransMIL(WIDTH, CLASSES, 32, 4, 16, 33).eval()
    state = {prefix + key: x for key, x in published.state_dict().items()}
    state = {"state_dict": state | {"loss.weight": torch.ones(3)}, "epoch": 3} if prefix else state
    torch.save(state, tmp_path / "weights.ckpt")
    ours = load_transmil(tmp_path / "weights.ckpt")
    for n in (1, 2, 15, 100, 1030):
        x = bag(n)
        torch.testing.assert_close(ours(x[None]), published(x), rtol=1e-4, atol=1e-5)


def test_the_defaults_are_those_of_the_paper():
    published = PaperTransMIL(64, 2, 512, 8, 256, 33).eval()
    ours = TransMIL(64, 2, mode="legacy").eval()
    ours.load_state_dict(published.state_dict())
    x = bag(300, 64)
    torch.testing.assert_close(ours(x[None]), published(x), rtol=1e-4, atol=1e-5)
    dropouts = [m.p for m in ours.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == [0.1, 0.1]


@pytest.mark.parametrize(("att_dim", "n_layers", "heads"), [(32, 2, 4), (WIDTH, 3, 2)])
def test_transmil_equals_torchmil(att_dim, n_layers, heads):
    theirs = torchmil.models.TransMIL(
        (WIDTH,), att_dim, n_layers=n_layers, n_heads=heads, dropout=0.1
    ).eval()
    ours = load_transmil(theirs.state_dict(), num_heads=None if heads == 4 else heads)
    for n in (1, 5, 16, 63, 300):
        x = bag(n)[None]
        torch.testing.assert_close(ours(x)[:, 0], theirs(x), rtol=1e-4, atol=1e-5)


def test_the_exact_twin_is_what_fixed_becomes_with_a_landmark_a_token():
    exact = small("transmil-exact")
    fixed = build_model("transmil", WIDTH, CLASSES, **{**SMALL, "num_landmarks": 64}).eval()
    fixed.load_state_dict(exact.state_dict())
    batch, mask = pad_bags([bag(40), bag(9)])
    torch.testing.assert_close(fixed(batch, mask), exact(batch, mask), rtol=1e-4, atol=1e-5)


def test_abmil_is_the_weighted_sum_of_the_paper():
    model, x = small("abmil"), bag(11)
    h = F.relu(model.embed[0](x))
    gated = torch.stack([torch.tanh(model.values(r)) * torch.sigmoid(model.gates(r)) for r in h])
    a = torch.exp(model.scores(gated)) / torch.exp(model.scores(gated)).sum()
    torch.testing.assert_close(model(x[None])[0], model.head((a * h).sum(0)))
    torch.testing.assert_close(model.attention(x[None])[0], a[:, 0])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.ones(2)}, "have one `cls_token`, got 0 among fc.weight"),
        ({}, "have one `cls_token`, got 0 among no keys"),
        ({"cls_token": torch.ones(1, 1, 8)}, "not the weights of a TransMIL: '_fc1.0.weight'"),
        (TransMIL(3, 2, **SMALL).state_dict() | {"more": torch.ones(1)}, "Unexpected key"),
        (
            torchmil.models.TransMIL((8,), 8, use_mlp=True).state_dict(),
            "A TransMIL has no layers.0.mlp_module.0.weight, which torchmil adds by use_mlp",
        ),
    ],
)
def test_other_weights_are_refused(state, message):
    with pytest.raises(ValueError, match=message) as stop:
        load_transmil(state)
    assert len(str(stop.value).splitlines()) == 1


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"state_dict": {}, "run": subprocess.Popen}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="holds Python objects, which could run code"):
        load_transmil(tmp_path / "bad.ckpt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="holds a Tensor instead of named tensors"):
        load_transmil(tmp_path / "tensor.pt")


@pytest.mark.parametrize("mode", ["fixed", "legacy"])
def test_transmil_keeps_no_table_of_pairs(mode):
    """At 40,000 patches one of them would take 6 GB."""
    program = """
from nystromer.mil.models import TransMIL
model = TransMIL(16, 2, embed_dim=32, num_landmarks=16, num_heads=4, mode=sys.argv[1]).eval()
features = torch.randn(1, 40_000, 16).half()
before = peak()
with torch.no_grad():
    model(features)
print((peak() - before) / 2**20)
"""
    assert number_printed(program, mode) < 400
