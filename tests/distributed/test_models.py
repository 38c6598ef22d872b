"""Models whose sequences are cut over processes against the same in one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import gloo
import nystromer
from nystromer import hf
from nystromer.distributed import sequence_parallel
from nystromer.mil.models.transmil import TransMIL

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_landmarks": 8,
    "max_position_embeddings": 64,
    "conv_kernel_size": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
HEADS = {
    "classes": (hf.NystromformerForSequenceClassification, {"ngram_size": 3}),
    "classes of the mean": (
        hf.NystromformerForSequenceClassification,
        {"classifier_pooling": "mean"},
    ),
    "words": (hf.NystromformerForMaskedLM, {}),
    "words and order": (hf.NystromformerForPreTraining, {"ngram_size": 4}),
}


class Mixer(nn.Module):
    """A torch model of our attention."""

    def __init__(self):
        super().__init__()
        self.attention = nystromer.NystromAttention(16, 2, num_landmarks=8, conv_kernel_size=5)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x + self.attention(x))


def build(name):
    torch.manual_seed(0)
    kind, fields = HEADS[name]
    return kind(hf.NystromformerConfig(**SIZES, **fields))


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (3, 41), generator=generator)
    mask = (torch.arange(41) < torch.tensor([41, 30, 6])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids > 20).long()}
    if "classes" in name:
        return {**batch, "labels": torch.tensor([0, 1, 1])}
    asked = torch.rand(3, 41, generator=generator) < 0.3
    batch["labels"] = ids.masked_fill(~asked, -100)
    if "order" in name:
        batch |= {"sentence_order_label": torch.tensor([0, 1, 0]), "only_asked": True}
    return batch


def results(model, batch):
    """Loss, the logits of sequences where there are some, and gradients."""
    outputs = model(**batch)
    outputs.loss.backward()
    logits = outputs.get("sop_logits", outputs.get("logits")).detach()
    return outputs.loss.detach(), logits, {n: p.grad for n, p in model.named_parameters()}


def cut():
    found = {name: results(sequence_parallel(build(name)), inputs(name)) for name in HEADS}
    torch.manual_seed(0)
    mixer, x = Mixer(), torch.randn(2, 50, 16)
    part = x.split([20, 30], 1)[dist.get_rank()]
    sequence_parallel(mixer)
    rows = mixer.attention.attention_rows(part, [0, 30])
    found["module"] = mixer(part).detach(), rows.detach()
    return found


def test_cut_models_equal_whole_ones(tmp_path):
    first, second = gloo.run(__file__, "cut", 2, tmp_path)
    for name in HEADS:
        loss, logits, grads = results(build(name), inputs(name))
        for i, (part_loss, part_logits, _) in enumerate((first[name], second[name])):
            torch.testing.assert_close(part_loss, loss, rtol=1e-5, atol=0)
            whole = logits[:, [slice(0, 20), slice(20, 41)][i]] if name == "words" else logits
            torch.testing.assert_close(part_logits, whole, rtol=1e-4, atol=1e-5)
        for parameter, grad in grads.items():
            mean = (first[name][2][parameter] + second[name][2][parameter]) / 2
            torch.testing.assert_close(mean, grad, rtol=1e-3, atol=1e-6)
    torch.manual_seed(0)
    mixer, x = Mixer(), torch.randn(2, 50, 16)
    both = zip(first["module"], second["module"], strict=True)
    outputs, rows = (torch.cat(x, dim) for x, dim in zip(both, (1, 3), strict=True))
    torch.testing.assert_close(outputs, mixer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        rows, mixer.attention.attention_rows(x, [0, 30]), rtol=1e-4, atol=1e-5
    )


def bags():
    """Features of bags, [1, N, D], and their real patches, bool [1, N]."""
    generator = torch.Generator().manual_seed(2)
    for n, hidden in ((1, 0), (2, 0), (60, 0), (75, 5)):
        features = torch.randn(1, n, 12, generator=generator)
        yield features, torch.rand(1, n, generator=generator) >= hidden / n


def slides(cut):
    """Logits and gradients of TransMIL of every bag."""
    found = []
    for features, mask in bags():
        torch.manual_seed(0)
        model = TransMIL(12, 2, embed_dim=16, num_heads=2, num_landmarks=6, dropout=0.0)
        logits = (sequence_parallel(model) if cut else model)(features, mask)
        nn.functional.cross_entropy(logits, torch.tensor([1])).backward()
        found.append([logits.detach(), {n: p.grad for n, p in model.named_parameters()}])
    return found


def cut_slides():
    return slides(cut=True)


@pytest.mark.parametrize("processes", [2, 3])
def test_cut_bags_equal_whole_ones(tmp_path, processes):
    """Also bags of fewer tokens than processes, and parts that begin amid a row of the square."""
    parts = gloo.run(__file__, "cut_slides", processes, tmp_path)
    for i, (logits, grads) in enumerate(slides(cut=False)):
        for part in parts:
            torch.testing.assert_close(part[i][0], logits, rtol=1e-4, atol=1e-5)
        for name, grad in grads.items():
            mean = sum(part[i][1][name] for part in parts) / processes
            torch.testing.assert_close(mean, grad, rtol=1e-3, atol=1e-6)


def refused():
    found = {}
    exact = hf.NystromformerConfig(**SIZES, exact_attention=True)
    clustered = hf.nystromize(
        hf_bert(), method="clustered", num_query_clusters=4, num_key_clusters=2, num_exact_keys=4
    )
    for name, model in {
        "head": hf.NystromformerForTokenClassification(hf.NystromformerConfig(**SIZES)),
        "exact": hf.NystromformerModel(exact),
        "clustered": clustered,
        "other": nn.Linear(2, 2),
    }.items():
        try:
            sequence_parallel(model)
        except (TypeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def hf_bert():
    from transformers import BertConfig, BertModel

    sizes = {name: SIZES[name] for name in list(SIZES)[:5]}
    return BertModel(BertConfig(**sizes))


def test_models_that_cannot_share_a_sequence_are_refused_by_name(tmp_path):
    (found,) = gloo.run(__file__, "refused", 1, tmp_path)
    assert "NystromformerForTokenClassification, whose head" in found["head"]
    assert "NystromformerModel with exact attention" in found["exact"]
    assert "BertModel, an encoder that was converted (clustered attention" in found["clustered"]
    assert found["other"].startswith("TypeError: ")
    assert "got Linear, which has no such attention" in found["other"]
