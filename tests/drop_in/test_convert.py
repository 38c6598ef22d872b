import copy
import logging
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import nystromer
from cases import assert_close
from nystromer import nystromize
from nystromer.drop_in.torch_layers import NystromMultiheadAttention
from vision import Block, VisionAttention


def transformer():
    return nn.Transformer(24, 4, 2, 1, dim_feedforward=32, batch_first=True).eval()


def mixed():
    """Four layers of torch's and timm's kind; the second and the last cannot be converted."""
    return nn.ModuleDict(
        {
            "first": nn.TransformerEncoderLayer(24, 4, batch_first=True),
            "biased": nn.MultiheadAttention(24, 4, add_bias_kv=True),
            "image": Block(VisionAttention()),
            "zeros": nn.MultiheadAttention(24, 4, add_zero_attn=True),
        }
    )


def test_nystromize_names_the_layers_that_it_cannot_convert():
    model = mixed()
    kinds = [type(x) for x in model.modules()]
    message = (
        "Nyström attention is impossible in 2 of 4 attention layers of ModuleDict: biased: "
        "add_bias_kv=True adds a learned key that is no token; zeros: add_zero_attn=True adds a "
        "key of zeros that is no token. Leave them out of `layers`, or write strict=False to keep "
        "them exact."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        nystromize(model)
    assert [type(x) for x in model.modules()] == kinds
    assert model["first"].self_attn.dropout == 0.1


def test_nystromize_keeps_them_exact_and_says_so_in_one_line(caplog):
    model, other = mixed(), mixed()
    with caplog.at_level(logging.WARNING):
        nystromize(model, strict=False)
        nystromize(other, layers=[0, 2])
    for x in (model, other):
        assert isinstance(x["first"].self_attn, NystromMultiheadAttention)
        assert type(x["biased"]) is type(x["zeros"]) is nn.MultiheadAttention
        assert x["first"].self_attn.dropout == x["image"].attn.attn_drop.p == 0
        assert x["first"].dropout.p == 0.1  # the feed-forward part's stays
    assert [record.getMessage() for record in caplog.records] == [
        "ModuleDict: Nyström attention in 2 of 4 layers, their attention dropout is 0 from now on; "
        "exact: biased: add_bias_kv=True adds a learned key that is no token; exact: zeros: "
        "add_zero_attn=True adds a key of zeros that is no token.",
        "ModuleDict: Nyström attention in 2 of 4 layers, their attention dropout is 0 from now on.",
    ]


def test_nystromize_says_nothing_of_dropout_where_there_was_none(caplog):
    nystromize(nn.MultiheadAttention(24, 4))
    assert caplog.messages == ["MultiheadAttention: Nyström attention in 1 of 1 layers."]


def test_nystromize_leaves_decoders_alone():
    with pytest.raises(ValueError, match=r"in 2 of 4 .*decoder\.layers\.0\.self_attn: .* causal"):
        nystromize(transformer())
    model = nystromize(transformer(), 8, min_length=1, strict=False)
    assert all(isinstance(x.self_attn, NystromMultiheadAttention) for x in model.encoder.layers)
    x, target = torch.randn(2, 50, 24), torch.randn(2, 9, 24)
    causal = nn.Transformer.generate_square_subsequent_mask(9)
    assert model(x, target, tgt_mask=causal, tgt_is_causal=True).shape == (2, 9, 24)


def test_nystromize_of_a_converted_module_takes_the_new_options():
    module, x = nn.MultiheadAttention(24, 4, batch_first=True).eval(), torch.randn(2, 50, 24)
    fresh = nystromize(copy.deepcopy(module), 16, min_length=1)
    nystromize(module, 8, conv_kernel_size=3)
    nn.init.ones_(module.nystrom_conv)
    nystromize(module, 16, min_length=1, conv_kernel_size=3)
    assert torch.equal(module.nystrom_conv, torch.ones(4, 3))  # trained
    nystromize(module, 16, min_length=1, conv_kernel_size=5)
    assert torch.equal(module.nystrom_conv, torch.zeros(4, 5))
    nystromize(module, 16, min_length=1)
    assert module.state_dict().keys() == fresh.state_dict().keys()
    assert torch.equal(module(x, x, x)[0], fresh(x, x, x)[0])


def test_nystromize_takes_a_layer_that_is_used_twice_once():
    layer = nn.TransformerEncoderLayer(24, 4, batch_first=True)
    model = nn.ModuleDict({"a": nn.Sequential(layer), "b": nn.Sequential(layer)})
    nystromize(model, layers=[0])
    with pytest.raises(ValueError, match=r"must be numbers in 0 \.\.\. 0, got 1; the module has 1"):
        nystromize(model, layers=[1])


def test_nystromize_changes_what_was_compiled_before():
    module, x = nn.TransformerEncoderLayer(24, 4, batch_first=True).eval(), torch.randn(2, 50, 24)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager")
    with torch.no_grad():
        before = compiled(x)
        nystromize(compiled, 8, min_length=1)
        assert_close(compiled(x), module(x), 1e-6)
        assert not torch.allclose(compiled(x), before, atol=1e-3)


def test_nystromize_hands_a_transformers_model_over():
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = nystromize(BertModel(config), 8, min_length=9, layers=[1], conv_kernel_size=3)
    exact, converted = model.config.nystrom["layers"]
    assert exact["attention"] == "exact"
    assert converted == {
        "name": "encoder.layer.1.attention.self",
        "attention": "nystrom",
        "num_landmarks": 8,
        "min_length": 9,
        "conv_kernel_size": 3,
        "num_heads": 4,
    }
    with pytest.raises(ValueError, match=r"bert: it is a transformers model, pass it .* alone"):
        nystromize(nn.ModuleDict({"bert": BertModel(config), "head": nn.MultiheadAttention(32, 4)}))


def test_nystromize_works_without_transformers():
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch, nystromer\n"
        "module = nystromer.nystromize(torch.nn.MultiheadAttention(24, 4), 8, min_length=1)\n"
        "x = torch.randn(50, 1, 24)\n"
        "print(*module(x, x, x)[0].shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "50 1 24"


class OwnAttention(nn.MultiheadAttention):
    pass


def test_nystromize_errors():
    with pytest.raises(TypeError, match=r"`module` must be an nn\.Module, got Tensor"):
        nystromize(torch.zeros(1))
    with pytest.raises(
        ValueError, match=r"must hold nn\.MultiheadAttention or .*, got Linear with"
    ):
        nystromize(nn.Linear(3, 3))
    with pytest.raises(
        ValueError, match=r"the module itself: OwnAttention changes nn\.MultiheadAt"
    ):
        nystromize(OwnAttention(24, 4))
    for options, message in [
        ({"num_landmarks": 0}, "`num_landmarks` must be at least 1, got 0"),
        ({"min_length": 0}, "`min_length` must be at least 1, got 0"),
        ({"conv_kernel_size": 4}, "`conv_kernel_size` must be odd, got 4"),
        ({"layers": [2]}, r"`layers` must be numbers in 0 \.\.\. 0, got 2"),
    ]:
        module = nn.MultiheadAttention(24, 4)
        with pytest.raises(ValueError, match=message):
            nystromize(module, **options)
        assert type(module) is nn.MultiheadAttention
    with pytest.raises(TypeError, match="`num_landmarks` must be an int, got float"):
        nystromize(nn.MultiheadAttention(24, 4), 8.0)


def test_nystromize_is_where_the_readme_says():
    assert nystromer.nystromize is nystromize
