import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel
from transformers import BertForSequenceClassification as Bert

from cases import assert_close
from nystromer.hf import LayerChoice, Plan, nystromize, plan_of

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}


def bert(cls=BertModel, **options):
    return cls(BertConfig(num_attention_heads=4, **SIZES, **options)).eval()


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
        assert torch.equal(model(**inputs).logits, converted)
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


@pytest.mark.parametrize("wrong", [{"model_type": "esm"}, {"layers": ()}])
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


def test_nystromize_converts_again():
    model = nystromize(bert(), 8, conv_kernel_size=3)
    nystromize(model, 16)
    assert plan_of(model).layers[0].num_landmarks == 16
    assert not any("nystrom" in name for name in model.state_dict())


def test_batching_changes_nothing():
    """Also where a short, exact sequence stands beside a long one."""
    model, n = nystromize(bert(), 8), 80
    mask = torch.ones(4, n, dtype=torch.long)
    mask[1, 20:] = mask[2, 31:] = mask[3, 32:] = 0  # exact, exact, and 4 M = 32
    ids = torch.randint(5, 99, (4, n))
    together = model(ids, attention_mask=mask)[0]
    for i, length in enumerate(mask.sum(1).tolist()):
        alone = model(ids[i : i + 1, :length])[0]
        assert_close(together[i : i + 1, :length], alone, 1e-5)
