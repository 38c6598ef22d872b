from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import pytest

from nystromer.recipes.demo.data import split_by_file, stdlib_task

STDLIB = Path(sysconfig.get_paths()["stdlib"])


def test_stdlib_task_splits_by_file():
    task = stdlib_task()
    train = {window.file for window in task.train}
    held_out = {window.file for window in task.held_out}
    assert train
    assert held_out
    assert not train & held_out


def test_stdlib_task_asks_about_every_package():
    task = stdlib_task()
    assert len(task.packages) == 10
    assert {window.package for window in task.train} == set(task.packages)
    assert {window.package for window in task.held_out} == set(task.packages)
    assert 1 / len(task.packages) <= task.majority_accuracy() < 0.5


def test_stdlib_task_is_deterministic():
    assert stdlib_task(seed=1) == stdlib_task(seed=1)
    assert stdlib_task(seed=1).train != stdlib_task(seed=2).train


def test_stdlib_task_windows_are_the_source():
    for window in stdlib_task(length=512, max_windows=5).train:
        source = (STDLIB / window.file).read_bytes()
        assert window.text == source[window.start : window.start + 512]
        assert len(window.text) == 512
        assert Path(window.file).parts[0] == window.package


def test_stdlib_task_takes_the_packages_that_are_there(tmp_path):
    for package, files in (("one", 3), ("two", 4), ("short", 2)):
        for i in range(files):
            path = tmp_path / package / f"file_{i}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(f"# {package} {i}\n".encode() * 100)
        (tmp_path / package / "__init__.py").touch()
    assert stdlib_task(length=64, stdlib=tmp_path).packages == ["one", "two"]


def test_stdlib_task_refuses_a_python_without_source(tmp_path):
    with pytest.raises(ValueError, match=r"`stdlib` must hold at least two packages .* got 0"):
        stdlib_task(stdlib=tmp_path)


def test_split_by_file_holds_out_about_the_share():
    files = [(Path(f"{i}.py"), b"x" * size) for i, size in enumerate((10, 20, 30, 40, 500, 400))]
    train, held_out = split_by_file(files, 0.25, random.Random(0))
    assert sorted(train + held_out) == sorted(files)
    assert 250 <= sum(len(text) for _, text in held_out) <= 500
