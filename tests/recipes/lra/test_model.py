import pytest
import torch

from nystromer.recipes.lra.model import Classifier, collate
from nystromer.recipes.lra.tasks import TASKS, Task

PAIRS = Task(3, 16, 300, batch_size=4, steps=10, warmup_steps=1, documents=2)


def rows(*lengths):
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randint(16, (n,), generator=draw).numpy() for n in 2 * lengths]
    count = len(lengths)
    return [
        {"input_ids": documents[i], "other_ids": documents[count + i], "labels": i % 3}
        for i in range(count)
    ]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier(PAIRS, "nystrom", 16).eval()


def test_collate_pads_to_the_longest():
    batch = collate(rows(5, 9))
    assert batch["input_ids"].shape == batch["other_ids"].shape == (2, 9)
    assert batch["mask"].sum(1).tolist() == batch["other_mask"].sum(1).tolist() == [5, 9]
    assert batch["labels"].tolist() == [0, 1]


def test_a_document_does_not_depend_on_its_batch(model):
    documents = rows(30, 200, 90)
    together = model(**collate(documents))["logits"]
    for row, logits in zip(documents, together, strict=True):
        assert torch.allclose(model(**collate([row]))["logits"][0], logits, atol=1e-6)


def test_documents_of_a_pair_are_encoded_apart(model):
    batch = collate(rows(30, 70))
    a = model.encode(batch["input_ids"], batch["mask"])
    b = model.encode(batch["other_ids"], batch["other_mask"])
    logits = model.head(torch.cat([a, b, a * b, a - b], 1))
    found = model(**batch)
    assert torch.allclose(found["logits"], logits)
    wanted = torch.nn.functional.cross_entropy(logits, batch["labels"])
    assert torch.allclose(found["loss"], wanted)


def test_the_published_size():
    model = Classifier(TASKS["listops"], "nystrom")
    layer = model.layers[0].attention
    assert len(model.layers) == 2
    assert (layer.num_heads, layer.head_dim, layer.num_landmarks) == (2, 32, 64)
    assert layer.conv_weight.shape == (2, 35)
    assert model.positions.weight.shape == (2000, 64)
    assert model.layers[0].mlp[1].weight.shape == (128, 64)
