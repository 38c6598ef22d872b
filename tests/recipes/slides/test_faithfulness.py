"""nystromer mil faithfulness: its tables on bags whose right map is known."""

import csv

import numpy as np
import pytest
import torch

from nystromer.mil.models import build_model
from nystromer.recipes.slides import faithfulness as recipe
from nystromer.recipes.slides.explained import Trained
from nystromer.recipes.slides.faithfulness import faithfulness

BAGS, PATCHES, WIDTH = 4, 30, 3


@pytest.fixture
def data(tmp_path, monkeypatch):
    """torchmil's folders: a bag is positive if the first feature of a patch is 1."""
    for folder in ("features", "patch_labels"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for i in range(BAGS):
        x = rng.uniform(0, 0.1, (PATCHES, WIDTH)).astype(np.float32)
        annotated = np.zeros(PATCHES, np.int64)
        if i % 2:
            x[5 : 5 + i, 0], annotated[5 : 5 + i] = 1.0, 1
        np.save(tmp_path / f"features/bag_{i}.npy", x)
        np.save(tmp_path / f"patch_labels/bag_{i}.npy", annotated)
    rows = "".join(f"bag_{i},{('normal', 'tumor')[i % 2]}\n" for i in range(BAGS))
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + rows)
    monkeypatch.setattr(recipe, "load_trained", lambda run: known_model())
    return tmp_path


def known_model():
    model = build_model("max", WIDTH, 2, embed_dim=2)
    with torch.no_grad():
        for x in model.parameters():
            x.zero_()
        model.embed[0].weight[0, 0] = 1.0
        model.head.weight[1, 0], model.head.bias[1] = 8.0, -4.0
    return Trained([model.eval()] * 2, ("normal", "tumor"), (), lambda bag: None)


def test_right_maps_beat_random_ones(data):
    output = data / "output"
    lines = faithfulness(data / "run", data / "features", output, labels=data / "labels.csv")
    assert sorted(x.name for x in output.iterdir()) == ["bags.csv", "flipping.png", "methods.csv"]
    by_name = {line.method: line for line in lines}
    assert next(iter(by_name)) == "single"  # max pooling has neither attention nor rollout
    assert set(by_name) == {"single", "gradient", "ig", "random"}
    single, chance = by_name["single"], by_name["random"]
    assert single.beats_random
    assert single.area > 0.3 > abs(chance.area)
    assert single.auc == 1.0
    assert single.bags == chance.bags == BAGS // 2
    assert abs(chance.auc - 0.5) < 0.3
    with open(output / "bags.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == BAGS * (3 + 5)
    assert {row["explained"] for row in rows if row["bag"] == "bag_1"} == {"tumor"}


def test_what_is_predicted_is_explained_without_labels(data):
    for path in (data / "patch_labels").iterdir():
        path.unlink()
    lines = faithfulness(
        data / "run", data / "features/bag_1.npy", data / "output", methods=["single"], draws=2
    )
    assert [line.method for line in lines] == ["single", "random"]
    assert lines[0].auc is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["rollout"]}, "PoolingMIL has no rollout between patches"),
        ({"methods": ["lrp"]}, "`--method` must be one of single"),
        ({"draws": 1}, "`--draws` must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        faithfulness(data / "run", data / "features", data / "output", **options)
    assert not (data / "output").exists()


def test_other_labels_are_refused(data):
    (data / "labels.csv").write_text("slide_id,label\nbag_1,benign\n")
    with pytest.raises(ValueError, match="know the classes normal, tumor, got 'benign' for bag_1"):
        faithfulness(data / "run", data / "features", data / "output", labels=data / "labels.csv")
    np.save(data / "patch_labels/bag_1.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"a label for each of the 30 patches of .*, got 3"):
        faithfulness(data / "run", data / "features", data / "output", methods=["single"])
