import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel

import nystromer
from cases import assert_close
from families import build
from nystromer.hf import LayerChoice, nystrom_attention_forward, nystromize
from nystromer.hf.conversion.interface import CHOICE, CONV
from nystromer.landmarks import kmeans

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
CLUSTERS = {"num_query_clusters": 4, "num_key_clusters": 4, "num_exact_keys": 8}


def bert(**options):
    return BertModel(BertConfig(num_attention_heads=4, **SIZES, **options)).eval()


def qkv(batch=2, heads=2, n=60, dim=8):
    return torch.randn(3, batch, heads, n, dim)


def layer(attention="nystrom", **options):
    module = nn.Module()
    size = {"num_landmarks": 8} if attention == "nystrom" else CLUSTERS
    setattr(module, CHOICE, LayerChoice("here", attention, **size, **options))
    return module


def call(module, q, k, v, mask=None, **options):
    return nystrom_attention_forward(module, q, k, v, mask, **options)[0].transpose(1, 2)


def test_attention_function_is_the_operation():
    q, k, v = qkv()
    module = layer(ridge=0.1)
    setattr(module, CONV, nn.Parameter(torch.randn(2, 3)))
    got = call(module, q, k, v, scaling=0.7)
    expected = nystromer.nystrom_attention(
        q, k, v, num_landmarks=8, scale=0.7, pinv_ridge=0.1, conv_weight=getattr(module, CONV)
    )
    assert torch.equal(got, expected)


def test_attention_function_is_clustered_attention_where_the_layer_is():
    q, k, v = qkv()
    mask = torch.arange(60) < torch.tensor([[60], [40]])
    expected = nystromer.clustered_attention(q, k, v, mask=mask, scale=0.7, **CLUSTERS)
    assert torch.equal(call(layer("clustered"), q, k, v, mask, scaling=0.7), expected)


def test_attention_function_clusters_queries_and_keys_together():
    q, k, v = qkv()
    centres = kmeans(torch.cat([q, k], -1), 8, iterations=3)[0]
    expected = nystromer.nystrom_attention(q, k, v, landmarks=(centres[..., :8], centres[..., 8:]))
    assert_close(call(layer(landmarks="kmeans"), q, k, v), expected, 1e-6)


def test_attention_function_repeats_grouped_keys():
    q, k, v = qkv(heads=4)
    got = call(layer(), q, k[:, ::2], v[:, ::2])
    pairs = [x[:, [0, 0, 2, 2]] for x in (k, v)]
    assert_close(got, nystromer.nystrom_attention(q, *pairs, num_landmarks=8), 1e-6)


@pytest.mark.parametrize("n", [31, 32])
@pytest.mark.parametrize("attention", ["nystrom", "clustered"])
def test_attention_is_exact_below_min_length(n, attention):
    q, k, v = qkv(n=n)
    exact = F.scaled_dot_product_attention(q, k, v, scale=0.7)
    is_exact = torch.allclose(call(layer(attention), q, k, v, scaling=0.7), exact, atol=1e-5)
    assert is_exact == (n < 32)


@pytest.mark.parametrize("attention", ["nystrom", "clustered"])
def test_attention_of_padding_alone_is_finite(attention):
    q, k, v = qkv(batch=3).requires_grad_()
    mask = torch.ones(3, 60, dtype=torch.bool)
    mask[1] = False
    mask[2, 20:] = False
    output = call(layer(attention), q, k, v, mask)
    output.square().sum().backward()
    assert output.isfinite().all()
    for alone in (mask[1:2], mask[2:]):  # without a long neighbour too
        assert call(layer(attention), q[1:2], k[1:2], v[1:2], alone).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{"num_landmarks": 8, "conv_kernel_size": 3}, {"method": "clustered", **CLUSTERS}],
    ids=["nystrom", "clustered"],
)
def test_attention_runs_in_half_precision(dtype, options):
    model = nystromize(bert(), **options).to(dtype)
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, 20:] = 0
    states = model(torch.randint(5, 99, (2, 60)), attention_mask=mask)[0]
    assert states.dtype == dtype
    assert states.isfinite().all()


def test_attention_refuses_dropout():
    q, k, v = qkv()
    for attention, name in (("nystrom", "Nyström"), ("clustered", "clustered")):
        message = rf"here drops out attention weights with p = 0.1, and {name} attention has none"
        with pytest.raises(ValueError, match=message):
            call(layer(attention), q, k, v, dropout=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_causal": True}, "here cannot use Nyström attention: it is causal"),
        ({"position_bias": torch.zeros(1)}, "it adds a position bias"),
        ({"sliding_window": 8}, "it has a sliding window"),
        ({"softcap": 50.0}, "it uses softcap"),
        ({"s_aux": torch.zeros(2)}, "it uses s_aux"),
        ({"cache": object()}, "it uses cache"),
    ],
)
def test_attention_refuses_by_reason(options, message):
    q, k, v = qkv()
    with pytest.raises(ValueError, match=message):
        call(layer(), q, k, v, **options)
    with pytest.raises(ValueError, match="here cannot use clustered attention: it "):
        call(layer("clustered"), q, k, v, **options)


class SomeCrossAttention(nn.Module):
    """BERT's, say: neither its shapes nor its attributes tell."""


def test_attention_refuses_cross_attention_of_equal_lengths():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"SomeCrossAttention cannot .*: it is cross-attention"):
        call(SomeCrossAttention(), q, k, v)


def test_attention_refuses_keys_of_another_length():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="it is cross-attention"):
        call(layer(), q[:, :, 1:], k, v)


def test_attn_implementation_nystrom_is_transformers_own_way(tmp_path):
    """M = 64, and everything that cannot be Nyström is refused when it is called."""
    bert(max_position_embeddings=300).save_pretrained(tmp_path)
    options = {"attention_probs_dropout_prob": 0.0, "attn_implementation": "nystrom"}
    model = AutoModel.from_pretrained(tmp_path, **options)
    exact = AutoModel.from_pretrained(tmp_path)
    for n, same in ((255, True), (256, False)):
        ids = torch.randint(5, 99, (1, n))
        assert torch.allclose(model(ids)[0], exact(ids)[0], atol=1e-5) == same
    decoder = AutoModel.from_pretrained(tmp_path, is_decoder=True, attn_implementation="nystrom")
    with pytest.raises(ValueError, match="BertSelfAttention cannot use Nyström attention: it is"):
        decoder(ids)


def test_a_layer_that_the_plan_does_not_name_is_an_error():
    model = nystromize(bert(), 8)
    del model.encoder.layer[1].attention.self.nystrom_choice
    with pytest.raises(RuntimeError, match="BertSelfAttention is not among the layers that config"):
        model(torch.randint(5, 99, (1, 40)))


def test_masks_of_every_form_give_the_same_states():
    """A 2-D mask, or the 4-D masks that transformers hands on as they are."""
    model, ids = nystromize(bert(), 8), torch.randint(5, 99, (2, 60))
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 40:] = False
    wide = mask[:, None, None].expand(2, 1, 60, 60)
    additive = torch.zeros(2, 1, 60, 60).masked_fill(~wide, torch.finfo(torch.float32).min)
    expected = model(ids, attention_mask=mask)[0]
    for form in (mask.long(), mask.float(), mask[:, None, None], wide, additive):
        assert_close(model(ids, attention_mask=form)[0], expected, 1e-6)
    causal = torch.ones(60, 60, dtype=torch.bool).tril()[None, None]
    with pytest.raises(ValueError, match="the mask differs between queries"):
        model(ids, attention_mask=causal)
    assert_close(model(ids, attention_mask=torch.ones(2, 60))[0], model(ids)[0], 1e-6)
    assert model(ids, attention_mask=torch.zeros(2, 60))[0].isfinite().all()


@pytest.mark.parametrize("name", ["bert", "esm"])
def test_padding_changes_no_valid_state(name):
    model = nystromize(build(name)[0], 8)
    ids = torch.randint(5, 99, (1, 50))
    padded = torch.cat([ids, torch.ones(1, 20, dtype=torch.long)], 1)
    mask = (torch.arange(70) < 50).long()[None]
    assert_close(model(padded, attention_mask=mask)[0][:, :50], model(ids)[0], 1e-5)
