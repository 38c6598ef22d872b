import os
import subprocess
import sys

import pytest

KILLS = os.environ.get("NYSTROMER_KILLS", "1")  # of each; fifty take a quarter of an hour in all


@pytest.mark.parametrize("name", ["train", "pretrain", "distill", "lra", "mil"])
def test_runs_killed_at_random_moments_end_as_one_that_was_not(name):
    words = [sys.executable, "tests/kill_runs.py", KILLS, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{name}: {KILLS} kills" in done.stdout
