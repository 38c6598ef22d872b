import datetime

import pytest
import torch
from torch import distributed, nn
from transformers import BertConfig, BertModel

from nystromer.gradients import zero_gradients
from nystromer.hf import (
    LayerChoice,
    NystromformerConfig,
    NystromformerForPreTraining,
    NystromformerModel,
    Plan,
    nystromize,
)

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip


def test_unused_parameters_get_zeros_whatever_they_hold():
    x = torch.randn(3, requires_grad=True)
    unused = nn.Parameter(torch.tensor([[torch.nan, torch.inf], [1.0, 2.0]]))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    output = zero_gradients(x.bfloat16(), [unused, frozen])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, x.bfloat16())
    output.sum().backward()
    assert torch.equal(unused.grad, torch.zeros(2, 2))
    assert frozen.grad is None
    with torch.no_grad():
        assert zero_gradients(x, [unused]) is x


def converted(**fields):
    model = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    choice = LayerChoice(
        "encoder.layer.0.attention.self", num_landmarks=8, conv_kernel_size=5, num_heads=4, **fields
    )
    return nystromize(model, plan=Plan("bert", (choice,)))


@pytest.mark.parametrize("fields", [{}, {"exact_heads": (1, 2)}, {"exact_heads": (0, 1, 2, 3)}])
@pytest.mark.parametrize("length", [7, 60])
def test_taps_have_a_gradient_in_every_step(fields, length):
    model = converted(**fields)
    taps = model.encoder.layer[0].attention.self.nystrom_conv
    model(torch.randint(5, 99, (2, length)))[0].square().sum().backward()
    for head in range(4):
        takes_part = length == 60 and head not in fields.get("exact_heads", ())
        assert bool(taps.grad[head].any()) == takes_part


def test_a_mask_that_leaves_few_tokens_leaves_taps_a_gradient():
    model, mask = converted(), torch.zeros(2, 60)
    mask[:, :9] = 1
    model(torch.randint(5, 99, (2, 60)), attention_mask=mask)[0].sum().backward()
    assert not model.encoder.layer[0].attention.self.nystrom_conv.grad.any()


def ours(cls=NystromformerModel, **fields):
    return cls(NystromformerConfig(**SIZES, num_landmarks=8, conv_kernel_size=3, **fields))


WORDS = torch.arange(40).view(2, 20) + 5
LABELS = {
    "words": {"labels": WORDS},
    "order": {"sentence_order_label": torch.tensor([0, 1])},
    "both": {"labels": WORDS, "sentence_order_label": torch.tensor([0, 1])},
    "no word": {"labels": torch.full_like(WORDS, -100), "only_asked": True},
}


@pytest.mark.parametrize("name", LABELS)
def test_pretraining_gives_every_parameter_a_gradient(name):
    model = ours(NystromformerForPreTraining)
    model(WORDS, **LABELS[name]).loss.backward()
    assert [n for n, x in model.named_parameters() if x.grad is None] == []


def test_ngrams_have_a_gradient_where_embeddings_are_given():
    model = ours(ngram_size=3, ngram_buckets=20)
    model(inputs_embeds=torch.randn(2, 20, 32))[0].square().sum().backward()
    assert not model.embeddings.ngram_embeddings.weight.grad.any()


def test_plain_data_parallel_training_takes_short_batches():
    distributed.init_process_group(
        "gloo",
        rank=0,
        world_size=1,
        store=distributed.HashStore(),
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        model = nn.parallel.DistributedDataParallel(converted())
        for length in (60, 7, 60, 7):
            model(torch.randint(5, 99, (2, length)))[0].sum().backward()
    finally:
        distributed.destroy_process_group()
