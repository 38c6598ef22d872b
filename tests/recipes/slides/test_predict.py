"""`nystromer mil predict`: an ensemble of all folds and seeds."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nystromer.mil import find_bags, load_ensemble


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the cohort, and out/: mean and abmil, two folds, two seeds."""
    from nystromer.recipes.slides.settings import Settings
    from nystromer.recipes.slides.training import train_slides
    from recipes.slides.conftest import write_cohort

    root = tmp_path_factory.mktemp("trained")
    write_cohort(root)
    settings = Settings(
        root / "features", root / "labels.csv", models=("mean", "abmil"), embed_dim=16, folds=2,
        seeds=2, epochs=1, validation=0.0,
    )  # fmt: skip
    train_slides(settings, root / "out")
    return root


@pytest.fixture
def predict(trained, tmp_path, run, monkeypatch):
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return lambda *words: run("mil", "predict", *words, "--output", "p.csv")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_probabilities_are_the_mean_of_all_models(predict):
    assert predict("out/abmil", "features")[:2] == (0, "24 bags.\nWritten: p.csv\n")
    rows = rows_of("p.csv")
    assert list(rows[0]) == ["slide", "predicted", "probability_normal", "probability_tumor"]
    ensemble = load_ensemble("out/abmil")
    assert ensemble.names == [f"fold_{i}/seed_{j}" for i in range(2) for j in range(2)]
    for bag, row in zip(find_bags("features"), rows, strict=True):
        with torch.no_grad():
            each = [model(bag.features()[None]).softmax(-1)[0] for model in ensemble.models]
        mean = torch.stack(each).mean(0)
        assert row["slide"] == bag.id
        assert float(row["probability_tumor"]) == pytest.approx(mean[1].item(), rel=1e-6)
        assert row["predicted"] == ("normal", "tumor")[int(mean.argmax())]


def test_a_member_answers_what_the_training_wrote(predict):
    code, _, error = predict("out/mean/fold_1/seed_0", "features")
    assert code == 0, error
    found = {row["slide"]: float(row["probability_tumor"]) for row in rows_of("p.csv")}
    for row in rows_of("out/mean/fold_1/seed_0/predictions.csv"):
        assert found[row["slide"]] == pytest.approx(float(row["probability_tumor"]), rel=1e-5)


def another_width():
    np.save("features/s3.npy", np.ones((4, 7), np.float16))


def no_patches():
    np.save("features/s3.npy", np.ones((0, 6), np.float16))


def not_a_number():
    np.save("features/s3.npy", np.full((4, 6), np.nan, np.float16))


def broken():
    Path("features/s3.npy").write_bytes(b"\x93NUMPY")


def twice():
    torch.save(torch.ones(3, 6), "features/s3.pt")


def other_weights():
    path = Path("out/mean/fold_0/seed_0/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "width": 7}))


def cut_weights():
    Path("out/mean/fold_0/seed_0/model.safetensors").write_bytes(b"cut")


def no_config():
    Path("out/mean/fold_0/seed_0/config.json").write_text("{}")


def unfinished():
    Path("out/metrics.json").unlink()


def there():
    Path("p.csv").write_text("mine")


def nothing():
    pass


CASES = {
    "another width": (another_width, "out/mean", "models were trained with, 6, got 7 in s3"),
    "no patches": (no_patches, "out/mean", "Slides have no patches (s3); encode them"),
    "NaN": (not_a_number, "out/mean", "The features of s3 (features/s3.npy) hold NaN or infinity"),
    "broken": (broken, "out/mean", "features/s3.npy cannot be read: "),
    "twice": (twice, "out/mean", "Slides stand in more than one file (s3); name a folder"),
    "other weights": (other_weights, "out/mean", "holds no mean for features of width 7"),
    "cut weights": (cut_weights, "out/mean", "model.safetensors cannot be read: "),
    "no config": (no_config, "out/mean", "config.json does not say what the model is"),
    "unfinished": (unfinished, "out/mean", "out/mean is not finished; give its"),
    "several models": (nothing, "out", "out holds several models, abmil, mean; name"),
    "no run": (nothing, "features", "features holds no trained models; name an --output of"),
    "patients": (nothing, "out/mean --patients labels.csv", "on bags of a slide: `--patients`"),
    "output": (there, "out/mean", "`--output` must be a new .csv file in a folder, got p.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_nothing_is_written(predict, name):
    change, words, message = CASES[name]
    change()
    run, *more = words.split()
    before = sorted(Path().rglob("*"))
    code, shown, error = predict(run, "features", *more)
    assert (code, shown) == (2, "")
    assert message in error
    assert sorted(Path().rglob("*")) == before


def test_slides_without_patches_are_left_out_on_request(predict):
    no_patches()
    assert predict("out/mean", "features", "--skip-missing")[0] == 0
    assert len(rows_of("p.csv")) == 23


def test_another_encoder_is_refused(predict):
    for path in Path("out/mean").glob("*/*/config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "encoder": "uni"}))
    assert predict("out/mean", "features")[0] == 0  # these files do not say theirs
    bag = find_bags("features")[0]
    with pytest.raises(ValueError, match="the encoder that the models were trained with, uni, got"):
        load_ensemble("out/mean").check(type(bag)(**{**vars(bag), "encoder": "virchow"}))


def test_bags_of_patients_need_their_table(predict):
    for path in Path("out/mean").glob("*/*/config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "bag": "patient"}))
    code, _, error = predict("out/mean", "features")
    assert (code, "trained on bags of a patient: `--patients`" in error) == (2, True)
    Path("patients.csv").write_text("\n".join(Path("labels.csv").read_text().splitlines()[:-1]))
    words = ("out/mean", "features", "--patients", "patients.csv")
    code, _, error = predict(*words)
    assert (code, "patients.csv has no patient of slides (s23)" in error) == (2, True)
    assert predict(*words, "--skip-missing")[0] == 0
    assert {row["patient"] for row in rows_of("p.csv")} == {f"p{i}" for i in range(12)}
