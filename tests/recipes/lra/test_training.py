import json
import math

import pytest
from safetensors.torch import load_file

from nystromer.recipes.lra import training
from nystromer.recipes.lra.tasks import TASKS
from nystromer.recipes.lra.training import run_task

SMALL = {"steps": 2, "batch_size": 4, "rows": 40, "eval_rows": 10, "looks": 2, "num_landmarks": 8}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs(task, data_dirs, cache, tmp_path):
    metrics = run_task(
        task, "nystrom", tmp_path / "run", data_dir=data_dirs[task], cache=cache, **SMALL
    )
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 40, "validation": 10, "test": 10}
    assert metrics["steps"] == 2
    assert metrics["schedule"] == 2 / TASKS[task].steps
    assert 0 <= metrics["accuracy"] <= 1
    assert metrics["ms_per_step"] > 0
    assert metrics["tokens_per_second"] > 0
    assert metrics["peak_mib"] > 1
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert sum(math.prod(x.shape) for x in weights.values()) == metrics["parameters"]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "eval_accuracy" in row] == [1, 2]


def test_runs_of_one_seed_agree_and_a_finished_run_stays(data_dirs, cache, tmp_path):
    options = {"data_dir": data_dirs["image"], "cache": cache, **SMALL}
    first, second, other = (
        run_task("image", "linear", tmp_path / name, seed=seed, **options)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    weights = [load_file(tmp_path / name / "model.safetensors") for name in "abc"]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not all((weights[0][name] == weights[2][name]).all() for name in weights[0])
    again = run_task("image", "linear", tmp_path / "a", resume=True, **options)
    assert again == first
    assert second["accuracy"] == first["accuracy"]
    assert other["seed"] == 1
    with pytest.raises(ValueError, match="holds a run; add --resume"):
        run_task("image", "linear", tmp_path / "a", **options)


def test_a_batch_in_parts_is_the_same_batch(data_dirs, cache, tmp_path):
    options = {"data_dir": data_dirs["image"], "cache": cache, **SMALL}
    weights = []
    for accumulate in (1, 4):
        folder = tmp_path / str(accumulate)
        run_task("image", "none", folder, accumulate=accumulate, **options)
        weights.append(load_file(folder / "model.safetensors")["positions.weight"])
    assert weights[0].sub(weights[1]).abs().max() < 5e-3  # but for the draws of dropout


def test_a_trial_makes_no_more_rows_than_it_needs(cache, tmp_path):
    small = {"steps": 2, "batch_size": 2, "looks": 1, "cache": cache}
    metrics = run_task("pathfinder", "none", tmp_path / "run", **small)
    assert metrics["rows"] == {"train": 4, "validation": 4, "test": 4}


def test_the_schedule_is_the_published_one_or_a_part_of_it():
    listops = TASKS["listops"]
    assert training.schedule(listops, 1.0, None) == 5000
    assert training.schedule(listops, 0.1, None) == 500
    assert training.schedule(listops, 0.1, 7) == 7
    table = {name: (x.batch_size, x.steps, x.warmup_steps) for name, x in TASKS.items()}
    assert table["text"] == (32, 20_000, 8_000)
    assert table["image"] == (256, 35_000, 175)
    assert table["pathfinder"] == (256, 62_400, 312)
    assert table["retrieval"] == table["imdb-same-movie"] == (32, 30_000, 800)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "path-x"}, "task must be one of listops, text, .*, got 'path-x'"),
        ({"fraction": 0.0}, "`--fraction` must be above 0 and at most 1, got 0.0"),
        ({"fraction": 2.0}, "`--fraction` must be above 0 and at most 1, got 2.0"),
        ({"steps": 0}, "`--steps` must be at least 1, got 0"),
        ({"batch_size": -1}, "`--batch-size` must be at least 1, got -1"),
        ({"batch_size": 0}, "`--batch-size` must be at least 1, got 0"),
        ({"learning_rate": math.inf}, "`learning_rate` must be above 0 and finite, got inf"),
        ({"batch_size": 6, "accumulate": 4}, "`--accumulate` must divide the batch of 6, got 4"),
        ({"looks": 0}, "`--looks` must be at least 1"),
        ({"num_landmarks": 0}, "`--num-landmarks` must be at least 1"),
        ({"rows": 0}, "`--rows` must be at least 1"),
        ({"attention": "flash"}, "`--attention` must be one of .*, got 'flash'"),
        ({"name": "retrieval"}, "retrieval needs `--data-dir`: .*imdb-same-movie"),
        ({"name": "imdb-same-movie"}, "needs `--data-dir`: the folder of imdb/train.jsonl"),
    ],
)
def test_bad_input_is_refused(options, message, cache, tmp_path):
    options = {"name": "listops", "attention": "nystrom", **SMALL, "cache": cache, **options}
    with pytest.raises(ValueError, match=message):
        run_task(output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
