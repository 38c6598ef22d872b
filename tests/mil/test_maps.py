"""Every method against its definition, written out; folding; what a model has not."""

import pytest
import torch

from nystromer.mil.maps import METHODS, explain, for_class
from nystromer.mil.maps.attention import folded
from nystromer.mil.maps.gradients import integrated_gradients
from nystromer.mil.models import MODELS, build_model

WIDTH = 12
SMALL = {"embed_dim": 16, "num_landmarks": 8, "num_heads": 2, "conv_kernel_size": 5}
TRANSMIL = ("transmil", "transmil-legacy", "transmil-exact")
EVIDENCE = for_class(1)


def small(name, classes=3, **options):
    options |= SMALL if name in TRANSMIL else {"embed_dim": 16}
    torch.manual_seed(1)
    return build_model(name, WIDTH, classes, **options).eval()


def test_evidence_is_the_log_odds_of_a_class():
    logits = torch.randn(4, 3)
    p = logits.softmax(1)[:, 1]
    torch.testing.assert_close(EVIDENCE(logits), (p / (1 - p)).log())
    assert torch.equal(for_class(0)(logits[:, :1]), logits[:, 0])


@pytest.mark.parametrize("name", MODELS)
def test_single_is_the_evidence_of_every_patch_alone(name, monkeypatch):
    monkeypatch.setattr("nystromer.mil.maps.single.BAGS", 4)
    model, x = small(name), torch.randn(10, WIDTH).half()
    alone = torch.cat([EVIDENCE(model(patch[None, None])) for patch in x])
    torch.testing.assert_close(explain(model, x, EVIDENCE), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 10, 150])
def test_gradient_is_the_gradient_times_the_input(name, n, monkeypatch):
    monkeypatch.setattr("nystromer.mil.maps.gradients.BLOCK", 64)
    model, x = small(name), torch.randn(n, WIDTH, requires_grad=True)
    grad = torch.autograd.grad(EVIDENCE(model(x[None])).sum(), x)[0]
    got = explain(model, x.detach(), EVIDENCE, method="gradient")
    torch.testing.assert_close(got, (grad * x).sum(1).detach(), rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["transmil", "abmil", "mean"])
def test_integrated_gradients_sum_to_the_difference_from_nothing(name):
    model, x = small(name), torch.randn(30, WIDTH)
    alphas = tuple((i + 0.5) / 300 for i in range(300))
    scores = integrated_gradients(model, x, EVIDENCE, alphas=alphas)
    with torch.no_grad():
        difference = EVIDENCE(model(x[None])) - EVIDENCE(model(0 * x[None]))
    torch.testing.assert_close(scores.sum(), difference[0], rtol=0.01, atol=0.01)
    default = explain(model, x, EVIDENCE, method="ig")
    torch.testing.assert_close(default, scores, rtol=0.1, atol=0.1 * float(scores.abs().max()))


def whole_maps(model, x):
    """The attention map of every layer and head, [H, T, T]."""
    return [
        layer.attn.attention_rows(layer.norm(y), range(y.shape[1]))[0]
        for layer, y, _ in model.layers(model.embed(x[None]))
    ]


@pytest.mark.parametrize("name", TRANSMIL)
@pytest.mark.parametrize("n", [1, 5, 50])
def test_attention_and_rollout_are_those_of_the_whole_maps(name, n):
    model, x = small(name), torch.randn(n, WIDTH)
    with torch.no_grad():
        first, last = whole_maps(model, x)
    got = explain(model, x, EVIDENCE, method="attention")
    torch.testing.assert_close(got, folded(last[:, 0].mean(0), n))
    got = explain(model, x, EVIDENCE, method="attention", layer=1, head=2)
    torch.testing.assert_close(got, folded(first[1, 0], n))
    eye = torch.eye(first.shape[1])
    for head, (a, b) in (None, (first.mean(0), last.mean(0))), (2, (first[1], last[1])):
        row = ((b + eye) / 2 @ (a + eye) / 2)[0]
        got = explain(model, x, EVIDENCE, method="rollout", head=head)
        torch.testing.assert_close(got, folded(row, n), rtol=1e-4, atol=1e-6)


def test_second_copies_are_folded_onto_the_first():
    row = torch.tensor([100.0, 1, 2, 3, 4, 5, 10, 20, 30, 40])  # 5 patches, 9 places
    assert folded(row, 5).tolist() == [11, 22, 33, 44, 5]
    assert folded(row, 9).tolist() == [1, 2, 3, 4, 5, 10, 20, 30, 40]


def test_attention_of_abmil_are_its_weights():
    model, x = small("abmil"), torch.randn(20, WIDTH)
    got = explain(model, x, EVIDENCE, method="attention")
    torch.testing.assert_close(got, model.attention(x[None])[0].detach())


@pytest.mark.parametrize("method", METHODS)
def test_maps_leave_no_gradients_behind(method):
    model = small("transmil")
    scores = explain(model, torch.randn(20, WIDTH), EVIDENCE, method=method)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transmil", {"method": "lrp"}, "must be one of single, gradient, ig, .*, got 'lrp'"),
        ("transmil", {"method": "attention", "layer": 3}, r"must lie in 1 \.\.\. 2 .*, got 3"),
        ("transmil", {"method": "rollout", "head": 0}, r"must lie in 1 \.\.\. 2 .*, got 0"),
        ("abmil", {"method": "attention", "head": 2}, r"must lie in 1 \.\.\. 1 .*, got 2"),
        ("transmil", {"method": "rollout", "layer": 1}, "`--layer` is of attention, got it beside"),
        ("mean", {"method": "single", "head": 1}, "`--head` is of attention and rollout, got it"),
        ("mean", {"method": "attention"}, "PoolingMIL has no attention between patches"),
        ("abmil", {"method": "rollout"}, "ABMIL has no rollout between patches; use"),
    ],
)  # fmt: skip
def test_what_a_model_has_not_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        explain(small(name), torch.randn(5, WIDTH), EVIDENCE, **options)
