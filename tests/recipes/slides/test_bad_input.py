"""What `mil train` refuses: one sentence, exit code 2, and nothing is written."""

import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from nystromer.recipes.runs.claim import claimed


def edit(path, *pairs):
    text = Path(path).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    Path(path).write_text(text)


def without_features():
    Path("features/s3.npy").unlink()


def without_label():
    edit("labels.csv", ("p1,s3.svs,tumor\n", ""))


def another_width():
    np.save("features/s3.npy", np.ones((4, 7), np.float16))


def two_encoders():
    for i in range(24):
        Path(f"features/s{i}.npy").unlink()
        with h5py.File(f"features/s{i}.h5", "w") as file:
            file["feats"] = np.ones((3, 6), np.float16)
            file["coords"] = np.arange(6.0).reshape(3, 2)
            file.attrs.update(unit="um", tile_size_um=256.0, extractor=f"e{i // 12}")


def not_a_number():
    np.save("features/s3.npy", np.full((4, 6), np.nan, np.float16))


def broken_h5():
    Path("features/s3.npy").unlink()
    Path("features/s3.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))


def rare_class():
    edit("labels.csv", ("p1,s2.svs,tumor", "p1,s2.svs,rare"), ("p1,s3.svs,tumor", "p1,s3.svs,rare"))


def one_class():
    edit("labels.csv", ("tumor", "normal"))


def one_event():
    lines = [f"s{i},{10 + i},{int(i > 2)}" for i in range(24)]
    Path("survival.csv").write_text("slide_id,survival_months,censorship\n" + "\n".join(lines))


def equal_times():
    lines = [f"s{i},{10 + i % 2},0" for i in range(24)]
    Path("survival.csv").write_text("slide_id,survival_months,censorship\n" + "\n".join(lines))


def splits(parts):
    def write():
        rows = [f"{slide},{part}" for part, slides in parts.items() for slide in slides.split()]
        Path("splits.csv").write_text("bag_name,split\n" + "\n".join(rows) + "\n")

    return write


def something_there():
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")


def nothing():
    pass


SURVIVAL = "--labels survival.csv --task survival"
CASES = {
    "a slide without features": (without_features, "", r"1 slide \(s3\) has no features; encode"),
    "features without label": (without_label, "", r"1 slide \(s3\) has no label; add to the table"),
    "another width": (another_width, "", "All features must have one width, got .*7 in s3"),
    "two encoders": (two_encoders, "", "All features must have one encoder, got e"),
    "NaN": (not_a_number, "", "The features of s3 .* hold NaN or infinity in 4 of 4 patches"),
    "broken h5": (broken_h5, "", "s3.h5 cannot be read: "),
    "rare class": (rare_class, "--folds 2", "The class rare has 1 patient, too few for 2 folds"),
    "one class": (one_class, "", "`label` must hold two classes or more, got normal"),
    "folds": (nothing, "--folds 13", "`--folds` must be at most the 12 patients, got 13"),
    "folds of a class": (nothing, "--folds 7", "The class normal has 6 patients, too few for 7"),
    "one fold": (nothing, "--folds 1", "`--folds` must be at least 2, got 1"),
    "one bag": (
        splits({"train": "s0 s2", "test": "s4 s6"}), "--splits splits.csv --validation 0",
        "fold_0 has 1 bag of the class normal for training, and a class needs 2 for training",
    ),
    "none for test": (
        splits({"train": "s0 s1 s2 s3", "test": "s4 s5"}), "--splits splits.csv --validation 0",
        "fold_0 has no bags of the class tumor for test",
    ),
    "no test": (splits({"train": "s0 s1"}), "--splits splits.csv", "splits has no bags for test"),
    "a leak": (splits({"train": "s0", "test": "s1"}), "--splits splits.csv", "p0 stands in train "),
    "unknown slides": (
        splits({"train": "s0 s99", "test": "s4"}), "--splits splits.csv",
        r"The split splits names slides without features or label \(s99\)",
    ),
    "output in use": (something_there, "", "`--output` must be a new folder, got out, which holds"),
    "endless rate": (nothing, "--learning-rate inf", "`--learning-rate` must be a finite number"),
    "no rate": (nothing, "--learning-rate 0", "`learning_rate` must be above 0 and finite, got 0"),
    "decay": (nothing, "--weight-decay -1", "`weight_decay` must be at least 0 and finite, got -1"),
    "model": (nothing, "--model clam", "`model` must be one of transmil, .*, got 'clam'"),
    "a model twice": (nothing, "--model max,max", "must name every model once, got max, max"),
    "epochs": (nothing, "--epochs 1000000", "`epochs` must be at most 100,000, got 1,000,000"),
    "no epochs": (nothing, "--epochs 0", "`epochs` must be at least 1, got 0"),
    "validation": (nothing, "--validation 0.7", "`validation` must be from 0 to 0.5, got 0.7"),
    "dropout": (nothing, "--dropout 1", "`dropout` must be at least 0 and below 1, got 1"),
    "heads": (nothing, "--embed-dim 12", "`embed_dim` must be a multiple of num_heads=8, got 12"),
    "task": (nothing, "--task regression", "`task` must be one of classification, survival"),
    "loss": (nothing, "--loss cox", "`--loss` is for --task survival, got cox without it"),
    "cox of one": (nothing, f"{SURVIVAL} --loss cox", "compares the bags of a batch, got batches"),
    "weights": (nothing, f"{SURVIVAL} --class-weights", "`--class-weights` is for classes"),
    "no survival": (nothing, "--task survival", "labels.csv has no columns of a time and of how"),
    "no classes": (nothing, "--labels survival.csv", "has survival and no classes; add --task"),
    "one event": (one_event, SURVIVAL, "The outcome event has 3 patients, too few for 5 folds"),
    "few events": (
        one_event, f"{SURVIVAL} --folds 2 --bins 4", "events? for training, too few for 4 int",
    ),
    "equal times": (equal_times, SURVIVAL, r"`--bins` must be at most \d, got 4: so many of the"),
    "numbers as classes": (nothing, "--label-column slide_id", "must hold classes, got another in"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(train, name):
    change, words, message = CASES[name]
    change()
    before = sorted(Path().rglob("*"))
    code, _, error = train(words)
    assert code == 2, error
    assert re.search(message, error), error
    assert sorted(Path().rglob("*")) == before


def test_labels_are_needed(run, cohort):
    code, _, error = run("mil", "train", "--features", "features", "--output", "out")
    assert (code, "the folder features holds none; name a table by --labels" in error) == (2, True)


def test_what_is_missing_is_left_out_on_request(train):
    without_features()
    edit("labels.csv", ("p2,s4.svs,normal\n", ""))
    words = "--skip-missing --model mean --folds 2 --seeds 1 --epochs 1 --validation 0"
    assert train(words)[0] == 0
    tested = [Path(f"out/fold_{i}/seed_0/predictions.csv").read_text() for i in range(2)]
    assert sum(len(text.splitlines()) - 1 for text in tested) == 22


def test_an_output_that_another_process_has_is_refused(train):
    with claimed(Path("out")):
        code, _, error = train()
        assert (code, "belongs to a run that is still going on" in error) == (2, True)
        assert len(os.listdir("out")) == 1


def test_a_run_is_not_begun_twice(train):
    words = "--model mean --folds 2 --seeds 1 --epochs 1 --validation 0"
    assert train(words)[0] == 0
    code, _, error = train(words)
    assert (code, "a run; add --resume to go on with it" in error) == (2, True)
