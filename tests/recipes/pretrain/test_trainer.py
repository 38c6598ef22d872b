from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from nystromer.hf import NystromformerForPreTraining
from nystromer.recipes.inputs.presets import preset
from nystromer.recipes.pretrain.pairs import Draw, Pad, rows_of
from nystromer.recipes.pretrain.trainer import Examples, answers, keep_one_bias, scores

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_landmarks": 4}


def test_scores_are_those_of_all_words_and_rows(letters):
    """Against torch's means over everything, whatever the batches were."""
    rows = list(rows_of(["One two. Three. Four five six.", "Seven. Eight."], letters, 40)) * 4
    draw, pad = Draw(letters), Pad(letters)
    model = NystromformerForPreTraining(preset("tiny", letters, max_length=40, **SIZES)).eval()
    batch = pad([draw(row, key) for key, row in enumerate(rows)])
    with torch.no_grad():
        every = model(**batch)
        parts = [
            answers(x.prediction_logits, x.sop_logits, part["labels"], part["sentence_order_label"])
            for part in ({name: x[i : i + 3] for name, x in batch.items()} for i in range(0, 8, 3))
            for x in [model(**part, only_asked=True)]
        ]
    found = scores(SimpleNamespace(predictions=torch.cat(parts)))
    words, order = every.prediction_logits.flatten(0, 1), every.sop_logits
    labels, swapped = batch["labels"].flatten(), batch["sentence_order_label"]
    right = words.argmax(1)[labels != -100] == labels[labels != -100]
    assert found["word_loss"] == pytest.approx(float(F.cross_entropy(words, labels)), rel=1e-4)
    assert found["word_accuracy"] == pytest.approx(float(right.float().mean()), rel=1e-4)
    assert found["order_loss"] == pytest.approx(float(F.cross_entropy(order, swapped)), rel=1e-4)
    assert found["order_accuracy"] == pytest.approx(
        float((order.argmax(1) == swapped).float().mean())
    )
    assert found["loss"] == pytest.approx(float(every.loss), rel=1e-4)


def test_examples_are_drawn_anew_in_every_epoch(letters):
    examples = Examples(
        list(rows_of(["One two. Three. Four five six."], letters, 40)), Draw(letters)
    )
    first, again = examples[0], examples[0]
    assert torch.equal(first["input_ids"], again["input_ids"])
    examples.epoch = 1
    assert not torch.equal(first["input_ids"], examples[0]["input_ids"])


def test_one_bias_is_two_again_when_loaded(letters, tmp_path):
    model = NystromformerForPreTraining(preset("tiny", letters, max_length=40, **SIZES))
    torch.nn.init.normal_(model.cls.predictions.bias)
    bias = model.cls.predictions.bias.detach().clone()
    keep_one_bias(model)
    model.tie_weights()
    model.save_pretrained(tmp_path, state_dict={**model.state_dict()})
    head = NystromformerForPreTraining.from_pretrained(tmp_path).cls.predictions
    assert head.bias is head.decoder.bias
    assert torch.equal(head.bias, bias)
