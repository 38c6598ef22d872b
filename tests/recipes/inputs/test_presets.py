import pytest
import torch

from nystromer.hf import NystromformerForSequenceClassification
from nystromer.recipes.inputs.presets import PRESETS, preset
from nystromer.recipes.inputs.tokenizers import load_tokenizer


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tiny", (2, 64, 2, 128)),
        ("bert-small", (4, 512, 8, 2048)),
        ("bert-base", (12, 768, 12, 3072)),
    ],
)
def test_a_preset_has_its_sizes_and_the_tokenizer_s_vocabulary(name, sizes):
    config = preset(name, load_tokenizer("dna"), max_length=300, num_landmarks=32)
    assert sizes == (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
    )
    assert (config.vocab_size, config.pad_token_id) == (9, 5)
    assert (config.max_position_embeddings, config.num_landmarks) == (300, 32)


def test_the_exact_twin_has_the_same_parameters_and_another_attention():
    models = []
    for attention in ("nystrom", "exact"):
        torch.manual_seed(0)
        config = preset("tiny", load_tokenizer("bytes"), max_length=99, attention=attention)
        models.append(NystromformerForSequenceClassification(config).eval())
    states = [model.state_dict() for model in models]
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, states), strict=True))
    ids = torch.arange(1, 100)[None]
    assert not torch.equal(models[0](ids).logits, models[1](ids).logits)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("small", {}, "`preset` must be one of tiny, bert-small, bert-base, got 'small'"),
        ("tiny", {"attention": "flash"}, "`attention` must be one of nystrom, exact, got 'flash'"),
        ("tiny", {"max_length": 0}, "`max_length` must be at least 1, got 0"),
        ("tiny", {"num_landmarks": 0}, "`num_landmarks` must be at least 1, got 0"),
    ],
)
def test_preset_refuses(name, options, message):
    assert "tiny" in PRESETS
    with pytest.raises(ValueError, match=message):
        preset(name, load_tokenizer("bytes"), **{"max_length": 9, **options})
