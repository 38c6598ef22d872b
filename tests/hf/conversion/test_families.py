import re

import pytest
import torch
import transformers
from transformers import (
    BartModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ModernBertModel,
)

import nystromer.hf as hf
from cases import assert_close
from families import CLIP_TEXT, FAMILIES, IGNORING, REFUSED, TEXT, VISION, build, text
from nystromer.hf import nystromize, plan_of
from nystromer.hf.conversion import interface
from nystromer.hf.conversion.plan import NAMES


def valid(model, inputs):
    """Hidden states of the real tokens."""
    states, mask = model(**inputs).last_hidden_state, inputs.get("attention_mask")
    if mask is None:
        return states
    if "input_values" in inputs:  # a speech model's mask at the rate of its features
        mask = model._get_feature_vector_attention_mask(states.shape[1], mask)
    return states[mask.bool()]


@pytest.mark.parametrize("name", FAMILIES)
def test_family_equals_exact_attention_where_the_budget_covers_it(name, monkeypatch):
    """Masks, scaling, grouped heads and layout arrive as they should, in eval and in training."""
    model, inputs = build(name)
    with torch.no_grad():
        exact = valid(model, inputs)
        nystromize(model, 1000, min_length=1)
        calls, attend = [], interface.attend
        monkeypatch.setattr(interface, "attend", lambda *x: calls.append(x) or attend(*x))
        assert_close(valid(model, inputs), exact, 1e-5)
        nystromize(model, method="clustered", num_exact_keys=1000, min_length=1)
        assert_close(valid(model, inputs), exact, 1e-5)
    assert len(calls) == 4  # twice two layers
    clusters = dict.fromkeys(("num_query_clusters", "num_key_clusters", "num_exact_keys"), 2)
    for method, size in (("nystrom", {"num_landmarks": 4}), ("clustered", clusters)):
        nystromize(model, method=method, min_length=1, **size)
        assert all(c.attention == method for c in plan_of(model).layers)
        states = valid(model.train(), inputs)
        states.square().mean().backward()
        assert states.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["nystrom", "clustered"])
@pytest.mark.parametrize("name", REFUSED)
def test_nystromize_refuses_by_layer_and_reason(name, method):
    make, config, layer, reason = REFUSED[name]
    start = f"^{NAMES[method].capitalize()} attention is impossible in"
    with pytest.raises(ValueError, match=rf"{start} \d.*{re.escape(f'{layer}: {reason}')}"):
        nystromize(make(config), method=method)


@pytest.mark.parametrize("name", REFUSED)
def test_nystromize_keeps_what_it_cannot_convert_when_not_strict(name, caplog):
    make, config, layer, reason = REFUSED[name]
    model = nystromize(make(config), 8, strict=False)
    by_name = {choice.name: choice for choice in plan_of(model).layers}
    assert by_name[layer].attention == "exact"
    assert by_name[layer].note.startswith(reason)
    assert f"exact: {layer}, {reason}" in caplog.text


@pytest.mark.parametrize("name", IGNORING)
def test_nystromize_refuses_models_that_ignore_the_interface(name):
    make, config = IGNORING[name]
    for strict in (True, False):
        with pytest.raises(ValueError, match=rf"{make.__name__} ignores transformers' attention"):
            nystromize(make(config), 8, strict=strict)


@pytest.mark.parametrize("cls", [transformers.NystromformerModel, hf.NystromformerForMaskedLM])
def test_nystromize_refuses_models_that_have_nystrom_attention(cls):
    model = cls(cls.config_class(**TEXT))
    message = rf"{cls.__name__} has Nyström attention already, so there is nothing to convert; set"
    with pytest.raises(ValueError, match=message):
        nystromize(model, 8)


def test_modernbert_converts_its_global_layers():
    make, config, *_ = REFUSED["modernbert"]
    model = make(config).eval()
    assert isinstance(model, ModernBertModel)
    inputs = text(model)
    with torch.no_grad():
        exact = valid(model, inputs)
        nystromize(model, 1000, min_length=1, strict=False)
        assert_close(valid(model, inputs), exact, 1e-5)
    assert [c.attention for c in plan_of(model).layers] == ["nystrom", "exact", "exact"]


def test_a_decoder_keeps_running_beside_a_converted_encoder():
    """transformers gives both the same config; only the encoder's layers may change."""
    make, config, *_ = REFUSED["bart"]
    model = make(config).eval()
    assert isinstance(model, BartModel)
    inputs = text(model)
    with torch.no_grad():
        exact = model(**inputs)
        nystromize(model.get_encoder(), 1000, min_length=1)
        after = model(**inputs)
    keep = inputs["attention_mask"].bool()
    assert_close(after.encoder_last_hidden_state[keep], exact.encoder_last_hidden_state[keep], 1e-5)
    assert_close(after.last_hidden_state[keep], exact.last_hidden_state[keep], 1e-5)


def test_a_model_of_two_encoders_converts_what_it_can(tmp_path):
    """CLIP's text encoder is causal. Both configs, and the choice, come back."""
    text_config, vision_config = CLIPTextConfig(**CLIP_TEXT), CLIPVisionConfig(**VISION)
    config = CLIPConfig(text_config=text_config.to_dict(), vision_config=vision_config.to_dict())
    model = CLIPModel(config).eval()
    inputs = {"input_ids": torch.randint(3, 99, (2, 20)), "pixel_values": torch.randn(2, 3, 32, 32)}
    with pytest.raises(
        ValueError, match=r"CLIPModel could not be tried on inputs made up .*example"
    ):
        nystromize(model, 4)
    with torch.no_grad():
        exact = model(**inputs)
        nystromize(model, 4, min_length=1, strict=False, example=inputs)
        converted = model(**inputs)
        assert_close(converted.text_embeds, exact.text_embeds, 1e-5)
        assert (converted.image_embeds - exact.image_embeds).abs().max() > 1e-5
        model.save_pretrained(tmp_path)
        loaded = CLIPModel.from_pretrained(tmp_path).eval()
        assert_close(loaded(**inputs).image_embeds, converted.image_embeds, 1e-5)
        without = CLIPModel.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
        assert_close(without(**inputs).image_embeds, exact.image_embeds, 1e-5)
