"""What a converted encoder keeps through copies, other models, files and initialisations."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)

from cases import assert_close
from nystromer.hf import LayerChoice, Plan, nystromize, plan_of
from nystromer.hf.conversion.interface import CONV

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip


def bert(cls=BertModel, **options):
    return cls(BertConfig(**SIZES, **options)).eval()


def converted(cls=BertModel):
    """With trained taps."""
    model = nystromize(bert(cls), 8, conv_kernel_size=3)
    for taps in taps_of(model):
        nn.init.normal_(taps)
    return model


def taps_of(model):
    return [x for m in model.modules() if (x := getattr(m, CONV, None)) is not None]


def words(n=64):
    return torch.randint(5, 99, (2, n))


class Around(PreTrainedModel):
    """Somebody's own model around an encoder."""

    config_class = BertConfig
    base_model_prefix = "encoder"

    def __init__(self, config, encoder=None):
        super().__init__(config)
        self.encoder = BertModel(config) if encoder is None else encoder
        self.head = nn.Linear(config.hidden_size, 2)
        self.post_init()


def own_plan(model):
    return Around(model.config, model).encoder


def plain_config(model):
    return Around(BertConfig(**SIZES), model).encoder


def another_plan(model):
    """The model around it has a plan too, without a convolution."""
    return Around(nystromize(bert(), 4).config, model).encoder


def forgotten_flags(model):
    """As a copy or a test of transformers leaves it."""
    for x in (*model.modules(), *model.parameters()):
        x._is_hf_initialized = False
    model.init_weights()
    return model


def encoder_decoder(model):
    decoder = bert(BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    return EncoderDecoderModel(encoder=model, decoder=decoder).encoder


INITIALISED = {
    "init_weights": lambda model: model.init_weights() or model,
    "initialize_weights": lambda model: model.initialize_weights() or model,
    "post_init": lambda model: model.post_init() or model,
    "copy": lambda model: [x := copy.deepcopy(model), x.init_weights()][0],
    "larger vocabulary": lambda model: [model, model.resize_token_embeddings(120)][0],
    "flags forgotten": forgotten_flags,
    "in a model with its config": own_plan,
    "in a model with another config": plain_config,
    "in a model with another plan": another_plan,
    "in an encoder-decoder": encoder_decoder,
}


@pytest.mark.parametrize("name", INITIALISED)
def test_initialising_leaves_taps_alone(name):
    model = converted()
    before = [x.detach().clone() for x in taps_of(model)]
    after = taps_of(INITIALISED[name](model))
    assert len(after) == 2
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_taps_travel_between_a_model_and_its_heads(tmp_path):
    model, ids = converted(), words()
    states = model(ids)[0]
    model.save_pretrained(tmp_path / "base")
    with_head = BertForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    with_head.init_weights()
    with_head.save_pretrained(tmp_path / "head")
    again = BertModel.from_pretrained(tmp_path / "head").eval()
    around = Around.from_pretrained(tmp_path / "base").eval()
    for x in (with_head.bert, again, around.encoder):
        assert_close(x(ids)[0], states, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_taps_come_back_in_the_dtype_asked_for(dtype, tmp_path):
    model = converted()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    for x, y in zip(taps_of(model), taps_of(loaded), strict=True):
        assert torch.equal(y, x.to(dtype))


def test_weights_assigned_to_a_model_on_meta_keep_their_taps():
    model, ids = converted(), words()
    with torch.device("meta"):
        empty = BertModel(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.embeddings.position_ids = model.embeddings.position_ids
    empty.embeddings.token_type_ids = model.embeddings.token_type_ids
    assert_close(empty.eval()(ids)[0], model(ids)[0], 1e-6)


def test_a_second_conversion_keeps_taps_of_the_same_size_and_starts_others_at_zero():
    model = converted()
    before = [x.detach().clone() for x in taps_of(model)]
    nystromize(model, 16, conv_kernel_size=3)
    assert all(torch.equal(x, y) for x, y in zip(before, taps_of(model), strict=True))
    nystromize(model, 16, conv_kernel_size=5)
    assert [x.abs().sum() for x in taps_of(model)] == [0, 0]
    nystromize(model, 16)
    assert taps_of(model) == []


def test_taps_of_a_plan_survive_what_comes_after():
    names = [f"encoder.layer.{i}.attention.self" for i in range(2)]
    rows = ((0.5, 1.0, 0.25),) * 4
    layers = [LayerChoice(x, conv_kernel_size=3, conv_taps=rows, num_heads=4) for x in names]
    model = nystromize(bert(), plan=Plan("bert", tuple(layers)))
    for x in taps_of(plain_config(forgotten_flags(model))):
        assert torch.equal(x, torch.tensor(rows))


def test_an_encoder_decoder_brings_its_converted_encoder_back(tmp_path):
    """transformers forgets the implementation of a part's config."""
    decoder = bert(BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    model = EncoderDecoderModel(encoder=converted(), decoder=decoder).eval()
    inputs = {"input_ids": words(), "decoder_input_ids": words(5)}
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert loaded.encoder.config._attn_implementation == "nystrom"
    assert loaded.decoder.config._attn_implementation != "nystrom"
    assert_close(loaded(**inputs).logits, model(**inputs).logits, 1e-6)


def fresh(path):
    config = BertConfig(**SIZES)
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(config, decoder()))


def decoder():
    return BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)


def of_models(path):
    return EncoderDecoderModel(encoder=bert(), decoder=BertLMHeadModel(decoder()))


def of_folders(path):
    bert().save_pretrained(path)
    return EncoderDecoderModel.from_encoder_decoder_pretrained(path, path)


@pytest.mark.parametrize("make", [fresh, of_models, of_folders])
def test_the_encoder_of_an_encoder_decoder_is_converted(make, tmp_path):
    """transformers gives it another config than its layers were built with."""
    encoder, ids = make(tmp_path).eval().encoder, words()
    exact = encoder(ids)[0]
    nystromize(encoder, 8, min_length=1)
    assert (encoder(ids)[0] - exact).abs().max() > 1e-5
    encoder.set_attn_implementation("sdpa")
    assert_close(encoder(ids)[0], exact, 1e-5)


def test_a_plan_for_a_part_ends_where_the_whole_is_converted(tmp_path):
    decoder = bert(BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    model = EncoderDecoderModel(encoder=converted(), decoder=decoder).eval()
    nystromize(model, 4, strict=False)
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert plan_of(loaded) == plan_of(model)
    inputs = {"input_ids": words(), "decoder_input_ids": words(5)}
    assert_close(loaded(**inputs).logits, model(**inputs).logits, 1e-6)
