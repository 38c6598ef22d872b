"""`nystromer mil train`: what it learns, leaves behind and repeats."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from nystromer.mil import load_transmil
from nystromer.recipes.slides.folds import make_folds
from nystromer.recipes.slides.settings import Settings
from nystromer.recipes.slides.training import train_slides

SHORT = "--folds 2 --seeds 1 --epochs 2"


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def mean_of(found, score, model):
    return next(x["mean"] for x in found["table"] if (x["model"], x["score"]) == (model, score))


def test_one_command_gives_one_table_of_models_that_learn(train):
    words = "--model mean,abmil --folds 2 --seeds 1 --epochs 25 --validation 0"
    code, shown, error = train(words)
    assert code == 0, error
    assert max(map(len, shown.splitlines())) <= 80
    assert "macro AUC" in shown
    assert "Written: out" in shown
    found = json.loads(Path("out/metrics.json").read_text())
    assert mean_of(found, "auc", "mean") > 0.9
    assert mean_of(found, "auc", "abmil") > 0.9
    assert [x["mean"] for x in found["table"]] == [
        float(x["mean"]) for x in rows_of("out/table.csv")
    ]
    assert len(rows_of("out/scores.csv")) == 2 * 2
    for name in ("out/roc.png", "out/mean/fold_1/seed_0/curves.png"):
        assert Path(name).read_bytes().startswith(b"\x89PNG")
    tested = [rows_of(f"out/mean/fold_{i}/seed_0/predictions.csv") for i in range(2)]
    assert len({x["slide"] for rows in tested for x in rows}) == 24
    assert not {x["patient"] for x in tested[0]} & {x["patient"] for x in tested[1]}
    for i, rows in enumerate(tested):  # the table's numbers, from the predictions
        truth = [x["label"] == "tumor" for x in rows]
        auc = roc_auc_score(truth, [float(x["probability_tumor"]) for x in rows])
        score = next(
            x for x in found["scores"] if x["model"] == "mean" and x["fold"] == f"fold_{i}"
        )
        assert score["auc"] == pytest.approx(auc)


@pytest.mark.parametrize("loss", ["nll", "cox --batch-size 6"])
def test_survival_is_learnt_with_the_right_sign(train, loss):
    words = f"--task survival --loss {loss} --model mean --folds 2 --seeds 1 --validation 0"
    code, _, error = train(f"{words} --epochs {15 if loss == 'nll' else 60}", "survival.csv")
    assert code == 0, error
    found = json.loads(Path("out/metrics.json").read_text())
    assert mean_of(found, "c_index", "mean") > 0.7
    assert Path("out/survival.png").exists()
    config = json.loads(Path("out/fold_0/seed_0/config.json").read_text())
    assert len(config["edges"]) == (3 if loss == "nll" else 0)
    assert {"risk", "time", "event"} <= rows_of("out/fold_0/seed_0/predictions.csv")[0].keys()


def test_a_training_stops_early_and_keeps_the_best_weights(train):
    code, _, error = train(
        "--model mean --folds 2 --seeds 1 --epochs 60 --patience 1 --learning-rate 0.1"
    )
    assert code == 0, error
    score = json.loads(Path("out/fold_0/seed_0/metrics.json").read_text())
    log = [json.loads(x) for x in Path("out/fold_0/seed_0/log.jsonl").read_text().splitlines()]
    losses = [x["eval_loss"] for x in log if "eval_loss" in x]
    assert score["epochs"] == len(losses) < 60
    assert score["best_epoch"] == int(np.argmin(losses)) + 1 == score["epochs"] - 1


def test_the_weights_are_transmils_own(train):
    assert train(f"--model transmil {SHORT} --epochs 1 --validation 0")[0] == 0
    folder = Path("out/fold_0/seed_0")
    model = load_transmil(folder / "model.safetensors", mode="fixed")
    assert model.cls_token.equal(load_file(folder / "model.safetensors")["cls_token"])
    assert not list(folder.glob("checkpoint*")) + list(folder.glob("*.bin"))


def test_biases_and_norms_do_not_decay(cohort):
    from nystromer.mil.ensemble import Spec
    from nystromer.recipes.slides.data import BagRows
    from nystromer.recipes.slides.trainer import make_trainer

    settings = Settings(Path("features"), weight_decay=0.5)
    spec = Spec("transmil", 6, classes=("a", "b"), options={"embed_dim": 16})
    trainer = make_trainer(cohort, settings, spec, BagRows([None], torch.zeros(1)), (), 0)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.RAdam
    decays = {
        id(x): group["weight_decay"] for group in optimizer.param_groups for x in group["params"]
    }
    for name, x in trainer.model.named_parameters():
        assert decays[id(x)] == (0.0 if "bias" in name or "norm" in name else 0.5), name


def test_a_killed_run_ends_as_one_that_was_not(cohort, run):
    words = [
        "mil", "train", "--features", "features", "--labels", "labels.csv", "--model", "mean",
        "--embed-dim", "16", "--folds", "2", "--seeds", "1", "--epochs", "4", "--resume",
    ]  # fmt: skip
    script = (
        "import os, signal, sys\n"
        "from nystromer.recipes.slides import trainer\n"
        "save = trainer.BagTrainer._save_checkpoint\n"
        "def killed(self, *args):\n"
        "    save(self, *args)\n"
        "    if 'fold_1' in str(self.args.output_dir) and self.state.epoch > 1.5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer.BagTrainer._save_checkpoint = killed\n"
        f"sys.argv = ['nystromer', *{words!r}, '--output', 'killed']\n"
        "from nystromer import cli\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    finished = Path("killed/fold_0/seed_0/model.safetensors").stat()
    assert list(Path("killed/fold_1/seed_0").glob("checkpoint-*"))
    assert run(*words, "--output", "killed")[0] == 0
    assert run(*words, "--output", "whole")[0] == 0
    assert Path("killed/fold_0/seed_0/model.safetensors").stat() == finished
    for path in Path("whole").rglob("*"):
        if path.is_file() and path.name not in ("run.json", "curves.png", "roc.png"):
            same = Path("killed", path.relative_to("whole"))
            assert same.read_bytes() == path.read_bytes(), path
    assert len(list(Path("killed").rglob("*"))) == len(list(Path("whole").rglob("*")))
    again = run(*words, "--output", "killed")  # finished: shown once more
    assert again[0] == 0
    assert "macro AUC" in again[1]
    code, _, error = run(*words, "--epochs", "5", "--output", "killed")
    assert code == 2
    assert "got epochs = 5 where the run in killed has 4" in error
    np.save("features/s0.npy", np.load("features/s0.npy") + 1)
    code, _, error = run(*words, "--output", "killed")
    assert code == 2
    assert "got the features = " in error


def test_two_processes_learn_what_one_does(train):
    words = "--model mean --folds 2 --seeds 1 --epochs 2 --validation 0 --batch-size 2"
    common = "mil train --features features --labels labels.csv --embed-dim 16 --output two"
    launch = "--nproc-per-node 2 --rdzv-endpoint localhost:0 --rdzv-backend c10d -m nystromer"
    done = subprocess.run(
        [Path(sys.executable).parent / "torchrun", *launch.split(), *common.split(), *words.split(),
         "--learning-rate", "1e-2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert train(f"{words} --device-batch 2")[0] == 0
    assert Path("two/scores.csv").read_text() == Path("out/scores.csv").read_text()


def test_numbers_that_are_not_finite_stop_it_and_leave_nothing(train, run):
    code, _, error = train(f"--model mean {SHORT} --learning-rate 1e30 --validation 0")
    assert code == 1
    assert "Stopped at step" in error
    assert not Path("out").exists()


def test_folds_are_stratified_and_keep_patients_together(cohort):
    from nystromer.recipes.slides.data import read_cohort

    settings = Settings(Path("features"), Path("labels.csv"), folds=3)
    found, labels = read_cohort(settings)
    folds = make_folds(settings, found, labels)
    case = [found.cases[bag.id] for bag in found.bags]
    assert sorted(i for fold in folds for i in fold.test) == list(range(24))
    for fold in folds:
        parts = [{case[i].patient for i in part} for part in (fold.train, fold.val, fold.test)]
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert sum(case[i].label == "tumor" for i in fold.test) == 4
        assert len(fold.train) + len(fold.val) + len(fold.test) == 24


def test_own_splits_are_the_folds(train):
    Path("splits").mkdir()
    slides = [f"s{i}" for i in range(24)]
    parts = [slides[:12], slides[12:16], slides[16:]]
    lines = [f"{i},{','.join(x[i] if i < len(x) else '' for x in parts)}" for i in range(12)]
    Path("splits/splits_0.csv").write_text("\n".join([",train,val,test", *lines]) + "\n")
    code, _, error = train("--model max --splits splits --seeds 1 --epochs 1")
    assert code == 0, error
    assert {x["slide"] for x in rows_of("out/fold_0/seed_0/predictions.csv")} == set(slides[16:])
    code, _, error = train("--splits splits --folds 2")
    assert (code, error) == (2, "--splits says what the folds are, got --folds 2 too.")


def test_a_bag_of_all_slides_of_a_patient(cohort):
    settings = Settings(
        Path("features"), Path("labels.csv"), bag="patient", models=("mean",), folds=2, seeds=1,
        epochs=1, embed_dim=8, class_weights=True,
    )  # fmt: skip
    train_slides(settings, Path("out"))
    tested = rows_of("out/fold_0/seed_0/predictions.csv")
    tested += rows_of("out/fold_1/seed_0/predictions.csv")
    assert {x["patient"] for x in tested} == {f"p{i}" for i in range(12)}
