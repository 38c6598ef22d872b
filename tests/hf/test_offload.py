"""Weights that lie elsewhere until the call of their module brings them."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from torch.nn.utils import parametrize
from transformers import BertConfig, BertModel

from nystromer.hf import (
    NystromformerConfig,
    NystromformerForMaskedLM,
    NystromformerModel,
    nystromize,
)

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 80,
}  # fmt: skip


def ours(cls=NystromformerModel):
    config = NystromformerConfig(**SIZES, num_landmarks=8, conv_kernel_size=3, ngram_size=3)
    return cls(config).eval()


def converted():
    model = nystromize(BertModel(BertConfig(**SIZES)).eval(), 8, conv_kernel_size=3)
    for layer in model.encoder.layer:
        nn.init.normal_(layer.attention.self.nystrom_conv)
    return model


MODELS = {"ours": ours, "with a head": lambda: ours(NystromformerForMaskedLM), "bert": converted}


def states(model):
    ids = torch.randint(5, 99, (2, 64), generator=torch.Generator().manual_seed(0))
    return model(ids, attention_mask=torch.arange(64) < torch.tensor([[64], [40]]))[0]


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_offloaded_weights_give_the_same_numbers(name, buffers, tmp_path):
    model = MODELS[name]()
    right, other = states(model), copy.deepcopy(model)
    where = {"execution_device": "cpu", "offload_buffers": buffers}
    assert torch.equal(states(cpu_offload(model, **where)), right)
    assert torch.equal(states(disk_offload(other, tmp_path, **where)), right)


@pytest.mark.parametrize("name", MODELS)
def test_weights_stay_on_disk_where_the_device_map_says_so(name, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    assert torch.equal(states(loaded.eval()), states(model))


def test_an_offloaded_model_can_be_converted(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "model")
    expected = nystromize(BertModel.from_pretrained(tmp_path / "model"), 8, conv_kernel_size=3)
    loaded = BertModel.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    nystromize(loaded, 8, conv_kernel_size=3)
    assert torch.equal(states(loaded.eval()), states(expected.eval()))


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrisation_of_the_taps_is_seen():
    model = ours()
    conv = model.encoder.layer[0].attention.self.conv
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.encoder.layer[0].attention.self.conv.weight.mul_(2)
    parametrize.register_parametrization(conv, "weight", Twice())
    assert torch.equal(states(model), states(doubled))
