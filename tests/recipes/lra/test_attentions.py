import pytest
import torch

from nystromer.recipes.lra import attentions
from nystromer.recipes.lra.attentions import ATTENTIONS, EMBED_DIM, make_attention
from nystromer.recipes.lra.tasks import Task

TASK = Task(2, 16, 300, batch_size=4, steps=10, warmup_steps=1)
DETERMINISTIC = [name for name in ATTENTIONS if name != "reformer"]


@pytest.fixture
def documents():
    """Two of 300 and 190 tokens, and the mask."""
    mask = torch.arange(300) < torch.tensor([[300], [190]])
    return torch.randn(2, 300, EMBED_DIM), mask


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_keeps_the_shape_and_has_gradients(name, documents):
    x, mask = documents
    attention = make_attention(name, TASK, 16)
    output = attention(x.requires_grad_(), mask)
    assert output.shape == x.shape
    (x + output * mask[..., None]).square().sum().backward()
    assert x.grad.isfinite().all()
    for parameter in attention.parameters():
        assert parameter.grad.isfinite().all()
        assert name == "none" or parameter.grad.any()


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("filling", [0.0, 30.0])
def test_padding_never_changes_an_output(name, documents, filling):
    x, mask = documents
    attention = make_attention(name, TASK, 16)
    x = torch.where(mask[..., None], x, filling)
    alone = attention(x[1:, :190], mask[1:, :190])
    assert torch.allclose(attention(x, mask)[1:, :190], alone, atol=1e-5)


def test_reformer_does_not_attend_to_padding(documents):
    x, mask = documents
    attention = make_attention("reformer", TASK)
    outputs = []
    for filling in (0.0, 30.0):
        torch.manual_seed(0)  # of its hashes
        outputs.append(attention(torch.where(mask[..., None], x, filling * torch.ones(64)), mask))
    assert outputs[0].shape == x.shape
    assert outputs[0].isfinite().all()


def test_flare_is_what_its_paper_says(documents):
    x, mask = documents
    attention = make_attention("flare", TASK, 16)
    k, v = (p(x).unflatten(2, (2, 32)).transpose(1, 2) for p in attention.projections)
    logits = attention.latents @ k.mT
    reads = logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1) @ v
    wanted = attention.out_proj((logits.mT.softmax(-1) @ reads).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, mask), wanted, atol=1e-5)


def test_exact_is_softmax_attention(documents):
    x, mask = documents
    attention = make_attention("exact", TASK)
    q, k, v = (p(x).unflatten(2, (2, 32)).transpose(1, 2) for p in attention.projections)
    logits = (q @ k.mT / 32**0.5).masked_fill(~mask[:, None, None], -torch.inf)
    wanted = attention.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, mask), wanted, atol=1e-5)


def test_performer_estimates_exact_attention(documents):
    _, mask = documents
    q, k, v = torch.randn(3, 2, 2, 300, 32) / 2
    wanted, mean = attentions.exact(q, k, v, mask), v.mean(2, keepdim=True)
    error = (attentions.Performer()(q, k, v, mask) - wanted).norm()
    assert error < 0.5 * (mean - wanted).norm()


def test_convolution_is_the_one_of_nystrom_attention(documents):
    x, mask = documents
    attention, nystrom = make_attention("convolution", TASK), make_attention("nystrom", TASK)
    attention.v_proj.load_state_dict(nystrom.v_proj.state_dict())
    attention.out_proj.load_state_dict(nystrom.out_proj.state_dict())
    with torch.no_grad():
        attention.taps.copy_(nystrom.conv_weight)
        both = nystrom(x, mask)
        nystrom.conv_weight.zero_()
        alone = nystrom(x, mask)
    found = attention(x, mask) - attention.out_proj.bias
    assert torch.allclose(found[mask], (both - alone)[mask], atol=1e-5)


def test_source_names_package_and_version():
    assert attentions.source("linformer") == "linformer 0.2.3"
    assert f"torch {torch.__version__}".startswith(attentions.source("exact"))
    assert attentions.source("none").startswith("nystromer ")


def test_an_unknown_attention_lists_the_known():
    known = "nystrom, exact, linformer, performer, linear, reformer, flare, convolution, none"
    with pytest.raises(ValueError, match=f"`--attention` must be one of {known}, got 'flash'"):
        make_attention("flash", TASK)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "linformer.linformer", None)
    with pytest.raises(ImportError, match=r"needs linformer: pip install linformer"):
        make_attention("linformer", TASK)
