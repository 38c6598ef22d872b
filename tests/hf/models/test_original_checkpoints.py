import pickle

import pytest
import torch

import nystromer.hf as hf
from cases import assert_close
from nystromer.hf import load_original

FIELDS = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "type_vocab_size": 1,
    "num_landmarks": 8,
}  # fmt: skip
# transformers' parts of names -> those of the released code, and of the reorganised code
RELEASED = [
    ("cls.predictions.transform.dense", "mlm.dense"),
    ("cls.predictions.transform.LayerNorm", "mlm.norm"),
    ("cls.predictions.decoder", "mlm.mlm_class"),
    ("nystromformer.encoder.layer.", "model.transformer_"),
    ("nystromformer.embeddings.LayerNorm", "model.embeddings.norm"),
    ("nystromformer.", "model."),
    ("attention.output.dense", "mha.ff"),
    ("attention.output.LayerNorm", "norm1"),
    ("attention.self.conv", "mha.attn.conv"),
    ("attention.self.query", "mha.W_q"),
    ("attention.self.key", "mha.W_k"),
    ("attention.self.value", "mha.W_v"),
    ("intermediate.dense", "ff1"),
    ("output.dense", "ff2"),
    ("output.LayerNorm", "norm2"),
]
LATER = {
    "model.transformer_": "model.backbone.backbone.encoders.",
    "ff1": "ff.0",
    "ff2": "ff.2",
}
REORGANISED = [(new, LATER.get(old, old)) for new, old in RELEASED]


def original(table, **fields):
    """(our model, its weights under the original names)"""
    model = hf.NystromformerForMaskedLM(hf.NystromformerConfig(**{**FIELDS, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in table:
            name = name.replace(new, old)
        state[name] = tensor
    del state["cls.predictions.bias"]  # the same tensor as the decoder's
    return model, state


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        (RELEASED, {"conv_kernel_size": 5, "hidden_act": "gelu_new"}),
        (REORGANISED, {"conv_kernel_size": 5, "hidden_act": "gelu"}),
        (RELEASED, {"conv_kernel_size": None, "hidden_size": 128, "num_attention_heads": 2}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_load_original_gives_the_same_logits(table, fields, prefix, tmp_path):
    model, state = original(table, **fields)
    state = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "cp-0099.model")
    loaded = load_original(tmp_path / "cp-0099.model", num_landmarks=8).eval()
    ids = torch.randint(5, 99, (2, 60))
    assert_close(loaded(ids).logits, model(ids).logits, 1e-5)
    assert loaded.config.conv_kernel_size == fields["conv_kernel_size"]


def test_load_original_takes_other_heads(tmp_path):
    _, state = original(RELEASED, conv_kernel_size=None)
    torch.save({"model_state_dict": state}, tmp_path / "a.model")
    assert load_original(tmp_path / "a.model", num_heads=2).config.num_attention_heads == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("model.transformer_1.norm2.bias"),
            r"1 names are missing, first nystromformer.encoder.layer.1.output.LayerNorm.bias;",
        ),
        (
            lambda state: state.update({"qahead.weight": torch.zeros(2)}),
            r"is no masked language .*: 1 are unexpected, first qahead.weight; folders with a",
        ),
        (
            lambda state: state.pop("model.embeddings.word_embeddings.weight"),
            r"1 names are missing, first nystromformer.embeddings.word_emb.* are unexpected, first",
        ),
        (
            lambda state: state.update({"model.embeddings.norm.weight": torch.zeros(3)}),
            r"does not fit together: size mismatch for nystromformer.embeddings.LayerNorm.weight",
        ),
    ],
)
def test_load_original_says_what_does_not_fit(change, message, tmp_path):
    _, state = original(RELEASED)
    change(state)
    torch.save({"model_state_dict": state}, tmp_path / "a.model")
    with pytest.raises(ValueError, match=message):
        load_original(tmp_path / "a.model")


def test_load_original_refuses_heads_that_do_not_divide_the_width(tmp_path):
    _, state = original(RELEASED, conv_kernel_size=None)
    torch.save({"model_state_dict": state}, tmp_path / "a.model")
    with pytest.raises(ValueError, match="`num_heads` must divide the width 32, got 5"):
        load_original(tmp_path / "a.model", num_heads=5)


class Code:
    def __reduce__(self):
        return (pytest.fail, ("code was unpickled",))


def test_load_original_reads_tensors_and_nothing_else(tmp_path):
    path = tmp_path / "a.model"
    contents = [b"", b"not a checkpoint", pickle.dumps(Code())]
    for data in contents:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
            load_original(path)
    torch.save({"model_state_dict": Code()}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
        load_original(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"is no masked language model .* 4 names are missing"):
        load_original(path)
    with pytest.raises(
        ValueError, match=r"`path` must be a checkpoint, got .*, which is not a file"
    ):
        load_original(tmp_path)
