import pytest
import torch
from torch.nn import functional as F

from benchmarks.clustered import quality, swapped
from benchmarks.clustered.methods import BUDGETS, methods
from benchmarks.clustered.quality import Case, MadeUp


def exact(q, k, v, mask, scale):
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


@pytest.mark.parametrize("keys", list(BUDGETS))
def test_budgets_count_every_key(keys):
    assert sum(BUDGETS[keys]) == keys


def test_grown_doubles_when_tokens_are_four_times_as_many():
    assert quality.grown(512) == quality.grown(1000) == BUDGETS[128]
    lengths = (1024, 2048, 4095, 4096, 8192, 16_384)
    assert [sum(quality.grown(n)) for n in lengths] == [256, 256, 256, 512, 512, 1024]


@pytest.mark.parametrize("name", list(methods(64)))
def test_methods_ignore_padding(name):
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 150, 8, generator=g)
    attention = methods(64)[name]
    wanted = attention(q, k, v, None, 0.3)
    padded = (F.pad(x, (0, 0, 0, 20), value=9.0) for x in (q, k, v))
    mask = torch.arange(170)[None] < 150
    output = attention(*padded, mask, 0.3)
    torch.testing.assert_close(output[:, :, :150], wanted)
    assert output[:, :, 150:].abs().max() == 0


def test_fidelity_of_exact_attention_is_one_and_of_others_less():
    case = Case("Python's help", 512, "learnt", "ours", "64")
    same = quality.fidelity(case, exact, 2)
    assert same["worst"] == pytest.approx(1, abs=1e-5)
    assert same["token_error"] < 1e-5
    other = quality.fidelity(case, methods(64)["ours"], 2)
    assert 0.9 < other["worst"] <= other["cosine"] < 0.999
    assert 0.1 < other["token_error"] < 0.6
    assert 0.1 < other["two_passages"] < 0.9


def test_encoder_of_more_positions_keeps_the_model():
    short, _ = swapped.encoder()
    long, _ = swapped.encoder(1024, "stretched")
    table = long.embeddings.position_embeddings.weight
    assert torch.equal(table[-1], short.embeddings.position_embeddings.weight[-1])
    assert len(short.embeddings.position_embeddings.weight) == 512


def test_gaussian_of_small_logits_is_close():
    assert quality.gaussian(MadeUp(0.01, "ours", "128"))["error"] < 0.01
