"""A small cohort: one patch tells the class of its bag, and the second feature how it ends."""

import numpy as np
import pytest

WIDTH, BAGS = 6, 24
COMMON = "--embed-dim 16 --learning-rate 1e-2 --output out"


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """The folder of a cohort, where commands run: features/, labels.csv, survival.csv."""
    monkeypatch.chdir(tmp_path)
    write_cohort(tmp_path)
    return tmp_path


def write_cohort(root, bags=BAGS):
    rng = np.random.default_rng(0)
    (root / "features").mkdir()
    classes, survival = ["case_id,slide_id,label"], ["slide_id,survival_months,censorship"]
    hazards = rng.permutation(np.linspace(-3, 3, bags))
    for i in range(bags):
        tumor = i // 2 % 2  # a patient's two slides are of one class
        features = rng.normal(size=(int(rng.integers(2, 9)), WIDTH)).astype(np.float16)
        features[0, 0] += 6 * tumor
        features[:, 1] += hazards[i]
        np.save(root / f"features/s{i}.npy", features)
        classes.append(f"p{i // 2},s{i}.svs,{('normal', 'tumor')[tumor]}")
        survival.append(f"s{i},{30 * np.exp(-hazards[i] / 2):.2f},{int(i % 5 == 4)}")
    (root / "labels.csv").write_text("\n".join(classes) + "\n")
    (root / "survival.csv").write_text("\n".join(survival) + "\n")


@pytest.fixture
def train(cohort, run):
    """train("--model mean"): exit code, what is shown and the last line of errors."""

    def call(words="", labels="labels.csv"):
        common = f"mil train --features features --labels {labels} {COMMON}"
        return run(*common.split(), *words.split())

    return call
