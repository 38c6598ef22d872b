"""What transformers' own tests ask of every model, asked of ours."""

import copy

import pytest
import torch
import transformers
from torch import nn

import nystromer.hf as hf
from cases import assert_close

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 128, "conv_kernel_size": 5,
    "num_landmarks": 8, "type_vocab_size": 2, "num_labels": 3,
}  # fmt: skip
CLASSES = [name for name in hf.__all__ if name.startswith("NystromformerFor")]
CLASSES.append("NystromformerModel")


def config(**fields):
    return hf.NystromformerConfig(**SIZES, **fields)


def build(name, **fields):
    return getattr(hf, name)(config(**fields)).eval()


def inputs(name, rows=3, n=20):
    batch = {
        "input_ids": torch.randint(5, 99, (rows, n)),
        "attention_mask": (torch.arange(n) < n - torch.arange(rows)[:, None]).long(),
        "token_type_ids": torch.randint(0, 2, (rows, n)),
    }
    if name.endswith("MultipleChoice"):
        batch = {key: x[:, None].expand(-1, 4, -1).contiguous() for key, x in batch.items()}
    return batch


def labels(name):
    if name.endswith("QuestionAnswering"):
        return {
            "start_positions": torch.tensor([0, 1, 2]),
            "end_positions": torch.tensor([3, 4, 5]),
        }
    kinds = {
        "MaskedLM": torch.randint(5, 99, (3, 20)),
        "PreTraining": torch.randint(5, 99, (3, 20)),
        "TokenClassification": torch.randint(0, 3, (3, 20)),
    }
    kind = name.removeprefix("NystromformerFor")
    return {"labels": kinds.get(kind, torch.tensor([0, 1, 2]))}


def first(output):
    return next(x for x in output.to_tuple() if torch.is_tensor(x))


@pytest.mark.parametrize("name", CLASSES)
def test_save_and_load(name, tmp_path):
    model, batch = build(name), inputs(name)
    model.save_pretrained(tmp_path)
    loaded = getattr(hf, name).from_pretrained(tmp_path)
    assert torch.equal(first(loaded(**batch)), first(model(**batch)))
    again = getattr(hf, name).from_pretrained(None, config=config(), state_dict=model.state_dict())
    assert all(
        torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", CLASSES)
def test_weights_that_are_missing_are_initialised_as_new_ones(name):
    cls = getattr(hf, name)
    torch.manual_seed(1)
    new = cls(config(ngram_size=3))
    loaded = cls.from_pretrained(None, config=config(ngram_size=3), state_dict={})
    for key, x in new.named_parameters():
        size, expected = (y.square().mean().sqrt() for y in (loaded.get_parameter(key), x))
        assert size.item() == pytest.approx(expected.item(), abs=0.02), key
    for key, x in new.named_buffers():
        assert torch.equal(x, loaded.get_buffer(key)), key


@pytest.mark.parametrize("name", CLASSES)
def test_building_on_meta(name):
    with torch.device("meta"):
        model = build(name)
    assert {x.device.type for x in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", CLASSES)
def test_attentions_and_hidden_states_by_argument_and_by_config(name):
    batch = inputs(name)
    by_config, later = build(name, output_attentions=True, output_hidden_states=True), build(name)
    later.load_state_dict(by_config.state_dict())
    later.config.output_attentions = True
    for model, asked in ((by_config, {}), (later, {}), (build(name), {"output_attentions": True})):
        output = model(**batch, **asked)
        assert model.config._attn_implementation == "nystrom"
        assert [x.shape[1:] for x in output.attentions] == 2 * [(4, 20, 20)]
    hidden = by_config(**batch).hidden_states
    assert [x.shape[1:] for x in hidden] == 3 * [(20, 32)]
    assert torch.equal(first(by_config(**batch)), first(later(**batch)))
    plain = build(name)
    plain.load_state_dict(later.state_dict())
    assert_close(first(plain(**batch)), first(later(**batch)), 1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_of_what_is_returned_can_be_kept(name):
    output = build(name)(**inputs(name), output_attentions=True, output_hidden_states=True)
    kept = (*output.hidden_states, *output.attentions)
    for x in kept:
        x.retain_grad()
    first(output).flatten()[0].backward()
    assert all(x.grad is not None for x in kept)
    assert all(x.grad.any() for x in output.attentions)


def test_attentions_and_output_belong_together_in_the_gradient():
    """Of the output by the weights, and through them."""
    model, batch = build("NystromformerModel").double(), inputs("NystromformerModel")
    states = []
    for asked in (False, True):
        model.zero_grad()
        model(**batch, output_attentions=asked)[0].square().sum().backward()
        states.append(
            {key: x.grad.clone() for key, x in model.named_parameters() if x.grad is not None}
        )
    for key, x in states[0].items():
        torch.testing.assert_close(states[1][key], x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CLASSES)
def test_tuples_hold_what_outputs_hold(name):
    model, batch = build(name), {**inputs(name), **labels(name)}
    if name == "NystromformerModel":
        del batch["labels"]
    asked = {"output_attentions": True, "output_hidden_states": True}
    output = model(**batch, **asked)
    flat = [x for x in output.to_tuple() if torch.is_tensor(x)]
    if name != "NystromformerForPreTraining":  # whose forward takes no return_dict
        parts = [x for x in model(**batch, **asked, return_dict=False) if torch.is_tensor(x)]
        assert all(torch.equal(x, y) for x, y in zip(flat, parts, strict=True))


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_given_are_embeddings_looked_up(name):
    model, batch = build(name), inputs(name)
    ids = batch.pop("input_ids")
    embedded = model.get_input_embeddings()(ids)
    expected = first(model(input_ids=ids, **batch))
    assert_close(first(model(inputs_embeds=embedded, **batch)), expected, 1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_a_row_does_not_depend_on_its_neighbours(name):
    model, batch = build(name), inputs(name)
    whole = first(model(**batch))
    for i in range(3):
        alone = model(**{key: x[i : i + 1] for key, x in batch.items()})
        assert_close(first(alone), whole[i : i + 1], 1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_can_be_resized(name):
    model, batch = build(name), inputs(name)
    before = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(110)
    assert model.config.vocab_size == 110
    assert torch.equal(model.get_input_embeddings().weight[:99], before)
    assert first(model(**batch)).isfinite().all()
    head = model.get_output_embeddings()
    if head is not None:
        assert head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", [x for x in CLASSES if x != "NystromformerModel"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_training_with_and_without_checkpointing(name, reentrant):
    model, batch = build(name, hidden_dropout_prob=0.0).train(), {**inputs(name), **labels(name)}
    plain = copy.deepcopy(model)
    plain(**batch).loss.backward()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(**batch).loss.backward()
    for (key, x), y in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert x.grad is not None or y.grad is None, key
        if x.grad is not None:
            assert_close(x.grad, y.grad, 1e-4)


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("multi_label_classification", torch.tensor([[0.0, 1.0, 1.0]] * 3)),
        ("single_label_classification", torch.tensor([0, 1, 2])),
        ("regression", torch.randn(3)),
    ],
)
def test_problem_types(kind, label):
    model = build("NystromformerForSequenceClassification", problem_type=kind)
    if kind == "regression":
        model.num_labels = model.config.num_labels = 1
        model.classifier.out_proj = nn.Linear(32, 1)
    loss = model(**inputs("NystromformerForSequenceClassification"), labels=label).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_other_implementations_are_exact_attention(name, implementation, tmp_path):
    model, batch = build(name, initializer_range=0.5), inputs(name, n=60)
    expected = build(name, initializer_range=0.5, exact_attention=True)
    expected.load_state_dict(model.state_dict())
    expected, nystrom = first(expected(**batch)), first(model(**batch))
    assert (nystrom - expected).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    loaded = getattr(hf, name).from_pretrained(tmp_path, attn_implementation=implementation)
    model.set_attn_implementation(implementation)
    for x in (model, loaded):
        assert x.config._attn_implementation == implementation
        assert_close(first(x(**batch)), expected, 1e-5)
        x.set_attn_implementation("nystrom")
        assert torch.equal(first(x(**batch)), nystrom)


def test_transformers_own_config_keeps_its_implementation():
    theirs = transformers.NystromformerConfig(**SIZES, attn_implementation="eager")
    assert hf.NystromformerModel(theirs).config._attn_implementation == "eager"


def test_an_implementation_that_is_not_there_is_refused():
    model = build("NystromformerForMaskedLM")
    message = (
        r"NystromformerForMaskedLM has attn_implementation='nystrom', and 'sdpa' or 'eager' for "
        r"exact attention, got 'flex_attention'"
    )
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation("flex_attention")
    assert model.config._attn_implementation == "nystrom"


def test_another_head_size_is_refused_or_started_anew(tmp_path):
    build("NystromformerForSequenceClassification").save_pretrained(tmp_path)
    cls = hf.NystromformerForSequenceClassification
    with pytest.raises(RuntimeError, match="mismatch"):
        cls.from_pretrained(tmp_path, num_labels=7)
    model = cls.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert isinstance(model.classifier.out_proj, nn.Linear)
    assert model.classifier.out_proj.out_features == 7
