import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, EuroBertConfig, EuroBertModel, GPT2Config, GPT2Model

from cases import assert_close
from nystromer import clustered_attention, nystrom_attention
from nystromer.hf import LayerChoice, Plan, attention_layers, intercepted, nystromize
from nystromer.hf.calibration.fidelity import exact_states, last_hidden, measure
from nystromer.hf.calibration.observe import clustered_choices
from nystromer.hf.calibration.survey import survey

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
M, N = 4, 40


def bert(**options):
    """Random, with attention peaked enough for heads to differ."""
    model = BertModel(BertConfig(num_attention_heads=4, **SIZES, **options)).eval()
    for layer in model.encoder.layer:
        layer.attention.self.query.weight.data.mul_(20)
        layer.attention.self.value.weight.data.mul_(20)
    return model


def tokens(batch=3, n=N, lengths=None):
    ids = torch.randint(5, 99, (batch, n))
    lengths = torch.tensor(lengths or [n] * batch)
    return {"input_ids": ids, "attention_mask": (torch.arange(n) < lengths[:, None]).long()}


def captured(model, batch):
    """Query, key, value of every layer."""
    calls = []

    def keep(module, query, key, value, *args, **kwargs):
        calls.append((query, key, value))
        out = F.scaled_dot_product_attention(query, key, value)
        return out.transpose(1, 2).contiguous(), None

    with intercepted(model, keep), torch.no_grad():
        model(**batch)
    return calls


def test_survey_measures_each_head_of_each_layer():
    model, batch = bert(), tokens()
    layers = survey(model, [batch], M)
    for layer, (q, k, v) in zip(layers, captured(model, batch), strict=True):
        exact = F.scaled_dot_product_attention(q, k, v)
        power = exact.double().square().sum((0, 2, 3))
        assert_close(torch.tensor(layer.power, dtype=torch.float64), power, 1e-5)
        plain = nystrom_attention(q, k, v, num_landmarks=M)
        error = (plain - exact).norm() / exact.norm()
        assert layer.plain == pytest.approx(float(error), rel=1e-4)
        scheme = layer.schemes[0]  # segment means, six steps, the fitted convolution
        taps = torch.tensor(scheme.choice.conv_taps)
        fitted = nystrom_attention(q, k, v, num_landmarks=M, conv_weight=taps)
        squares = (fitted - exact).double().square().sum((0, 2, 3))
        assert_close(torch.tensor(scheme.squares, dtype=torch.float64), squares, 1e-3)
        assert float(squares.sum()) < float((plain - exact).square().sum())


def test_survey_measures_clustered_attention_with_up_to_twice_the_keys():
    model, batch = bert(), tokens()
    for layer, (q, k, v) in zip(survey(model, [batch], M), captured(model, batch), strict=True):
        exact = F.scaled_dot_product_attention(q, k, v)
        found = layer.of("clustered")
        assert [scheme.choice.keys for scheme in found] == [M, 2 * M, 3 * M, 4 * M]
        for scheme, (queries, keys, kept) in zip(
            found, ((2, 1, 1), (4, 1, 3), (4, 2, 6), (8, 2, 6)), strict=True
        ):
            near = clustered_attention(
                q, k, v,
                num_query_clusters=queries, num_key_clusters=keys, num_exact_keys=kept,
            )  # fmt: skip
            squares = (near - exact).double().square().sum((0, 2, 3))
            assert_close(torch.tensor(scheme.squares, dtype=torch.float64), squares, 1e-3)
        assert layer.typical("clustered").choice.keys == 2 * M == layer.best().choice.keys
        assert [x for x in layer.schemes if x.alone] == [layer.best(), layer.typical("clustered")]


def test_survey_leaves_out_clusters_that_no_sequence_is_long_enough_for():
    """Twice the keys is where a converted model begins to use them."""
    (layer, _) = survey(bert(), [tokens(n=6 * M - 1), tokens(n=4 * M)], M)
    assert [scheme.choice.keys for scheme in layer.of("clustered")] == [M, 2 * M]


def test_a_single_landmark_has_clusters_too():
    assert [choice.keys for choice in clustered_choices("a", 2, 1)] == [3, 4]


def test_survey_says_what_a_layer_alone_does_to_the_model():
    model, batch = bert(), tokens()
    exact = exact_states(model, [batch])
    for i, layer in enumerate(survey(model, [batch], M)):
        for attention in ("nystrom", "clustered"):
            scheme = layer.typical(attention)
            choices = [LayerChoice(x.name, "exact") for x in attention_layers(model)]
            choices[i] = dataclasses.replace(scheme.choice, num_heads=4)
            converted = nystromize(copy.deepcopy(model), plan=Plan("bert", tuple(choices)))
            wanted = measure([last_hidden(converted, batch)], exact)
            assert dataclasses.astuple(scheme.alone) == pytest.approx(
                dataclasses.astuple(wanted), abs=1e-6
            )


def test_survey_fits_the_best_convolution():
    """No other taps leave less: the error is flat there."""
    model, batch = bert(), tokens()
    scheme = survey(model, [batch], M)[0].schemes[0]
    q, k, v = captured(model, batch)[0]
    taps = torch.tensor(scheme.choice.conv_taps, requires_grad=True)
    out = nystrom_attention(q, k, v, num_landmarks=M, conv_weight=taps)
    off = (out - F.scaled_dot_product_attention(q, k, v)).square().sum((0, 2, 3))
    (slope,) = torch.autograd.grad(off.sum(), taps)
    at_zero = nystrom_attention(q, k, v, num_landmarks=M, conv_weight=(zero := 0 * taps))
    off = (at_zero - F.scaled_dot_product_attention(q, k, v)).square().sum()
    (start,) = torch.autograd.grad(off, zero)
    assert slope.norm() < 2e-2 * start.norm()


def test_survey_is_the_same_with_padding_and_in_parts():
    model = bert()
    batch = tokens(3, lengths=[N, N - 9, N - 3])
    layers = survey(model, [batch], M)
    alone = [
        {key: x[i : i + 1, :n] for key, x in batch.items()} for i, n in enumerate((N, N - 9, N - 3))
    ]
    for layer, same in zip(layers, survey(model, alone, M), strict=True):
        assert_close(torch.tensor(layer.power), torch.tensor(same.power), 1e-5)
        assert layer.plain == pytest.approx(same.plain, rel=1e-4)
        for scheme, other in zip(layer.schemes, same.schemes, strict=True):
            assert scheme.squares == pytest.approx(other.squares, rel=1e-3)
            if scheme.alone is not None:
                assert scheme.alone.error == pytest.approx(other.alone.error, rel=1e-3)


def test_survey_leaves_out_sequences_that_stay_exact():
    model, long = bert(), tokens(2)
    padded = {key: torch.cat([x, x[:1]]) for key, x in long.items()}
    padded["attention_mask"][2, 4 * M - 1 :] = 0
    layers = [survey(model, [batch], M)[0] for batch in (long, padded)]
    assert_close(torch.tensor(layers[1].power), torch.tensor(layers[0].power), 1e-5)


def test_survey_changes_nothing():
    model, batch = bert().train(), tokens()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    survey(model, [batch], M)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_survey_takes_grouped_heads():
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    config = EuroBertConfig(num_attention_heads=4, num_key_value_heads=2, **SIZES, **ids)
    layers = survey(EuroBertModel(config).eval(), [tokens()], M)
    assert [len(layer.power) for layer in layers] == [4, 4]


@pytest.mark.parametrize(
    ("make", "batches", "message"),
    [
        (bert, [], "`batches` must hold at least one batch of inputs, got none"),
        (bert, [tokens(n=15)], "at least 4 M = 16 tokens, .* got at most 15"),
        (lambda: nystromize(bert(), M), [tokens()], "was converted already; load the exact"),
        (
            lambda: GPT2Model(GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=4)).eval(),
            [tokens()],
            "No layer can be swapped: h.0.attn: it is causal",
        ),
    ],
)
def test_survey_refuses(make, batches, message):
    with pytest.raises(ValueError, match=message):
        survey(make(), batches, M)


def test_survey_keeps_the_reason_of_a_layer_that_cannot_be_swapped():
    model = bert()
    model.encoder.layer[1].attention.self.is_causal = True
    layers = survey(model, [tokens()], M)
    assert layers[0].reason is None
    assert layers[1].reason.startswith("it is causal")
    assert layers[1].schemes == ()
