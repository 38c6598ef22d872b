import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nystromer import bench, cli
from nystromer.backends.native.library import in_use
from nystromer.bench import Row, read_csv
from nystromer.cli import measuring as commands
from nystromer.hf import NystromformerConfig, NystromformerForMaskedLM
from nystromer.recipes.convert import encoder

SMALL = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "num_landmarks": 8,
}  # fmt: skip


def run(monkeypatch, *words):
    """The exit code of `nystromer <words>`."""
    monkeypatch.setattr(sys, "argv", ["nystromer", *map(str, words)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def measured(monkeypatch):
    """Cases that would have been measured; exact attention is slow, the rest is not."""
    cases = []

    def fake(case, *, repeats, time_limit):
        cases.append(case)
        return Row(case, case.n**2 / 1e6 if case.method == "exact" else 0.0123, 5 << 20, 0.25)

    monkeypatch.setattr(bench, "measure", fake)
    return cases


def test_bench_writes_a_table_rows_and_a_figure(monkeypatch, capsys, tmp_path, measured):
    output = tmp_path / "new" / "folder"
    words = ("bench", "--lengths", "65536, 4096", "--time-limit", "20", "--output", output)
    assert run(monkeypatch, *words, "--backward", "--heads", "2") == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if str(tmp_path) not in line)
    assert re.search(r"4,096 +blocked +12\.3 ms +5 MiB +0\.25", shown)
    assert re.search(r"65,536 +exact +– +– +–", shown)
    assert "exact, N = 65,536: skipped: would take about 4295 s." in shown
    assert "forward and backward, M = 64, 2 heads of 64, float32" in shown
    assert in_use() in " ".join(shown.split())
    assert str(output / "rows.csv") in shown
    assert (output / "scaling.png").read_bytes().startswith(b"\x89PNG")
    rows = read_csv(output / "rows.csv")
    assert [row.case for row in rows if row.seconds is not None] == measured
    assert all(case.backward and case.heads == 2 for case in measured)


def test_bench_shows_what_is_being_measured(monkeypatch, capsys, tmp_path, measured):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich can tell
    run(monkeypatch, "bench", "--lengths", "64", "--methods", "exact,blocked", "--output", tmp_path)
    assert "N = 64" in capsys.readouterr().err


def test_demo_runs_the_recipe(monkeypatch, capsys):
    calls = []

    def run_demo(output, *, seed, epochs):
        calls.append((output, seed, epochs))
        return output / "report.html"

    monkeypatch.setitem(sys.modules, "nystromer.recipes.demo", SimpleNamespace(run_demo=run_demo))
    assert run(monkeypatch, "demo", "--output", "there", "--epochs", "2") == 0
    assert run(monkeypatch, "demo", "--seed", "3") == 0
    assert calls == [(Path("there"), 0, 2), (Path("demo"), 3, None)]
    assert str(Path("there") / "report.html") in capsys.readouterr().out


def test_nystromer_alone_is_help(monkeypatch, capsys):
    assert run(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "bench" in shown
    assert "demo" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "bench --lengths 10,x",
            "`--lengths` must be whole numbers .* got '10,x'; write 1024,4096",
        ),
        ("bench --lengths 0", "`--lengths` must be whole numbers of at least 1"),
        ("bench --lengths ,", "`--lengths` must be whole numbers .* got ','"),
        ("bench --lengths ²", "`--lengths` must be whole numbers .* got '²'"),
        ("bench --methods exact,flash", "`method` must be one of .*, got 'flash'"),
        ("bench --methods ,", "`methods` must have at least one entry"),
        ("bench --dtype int8", "`dtype` must be one of .*, got 'int8'"),
        ("bench --num-landmarks 0", "`num_landmarks` must be at least 1, got 0"),
        ("bench --heads many", "'--heads'"),
        ("bench --nope", "--nope"),
        ("nope", "'nope'"),
        (
            "bench --output taken",
            "`--output` must be a new folder, got taken, which exists already",
        ),
        ("bench --output taken/in", "`--output` taken/in cannot be written to: Not a directory"),
    ],
)
def test_bad_input_is_one_sentence(monkeypatch, capsys, tmp_path, measured, words, message):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert run(monkeypatch, *words.split()) == 2
    shown = capsys.readouterr().err.strip()
    assert re.search(message, shown)
    assert len(shown.splitlines()) == 1
    assert not measured


@pytest.mark.parametrize("error", [ValueError, TypeError, ImportError, NotImplementedError])
def test_what_the_library_refuses_is_one_sentence(monkeypatch, capsys, tmp_path, error):
    def refuse(*args, **kwargs):
        raise error("It cannot be done.")

    monkeypatch.setattr(commands, "sweep", refuse)
    assert run(monkeypatch, "bench", "--output", tmp_path) == 2
    assert capsys.readouterr().err.strip() == "It cannot be done."


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_library_is_named(monkeypatch, capsys, missing):
    for name in list(sys.modules):
        if name.startswith("nystromer.cli.") or name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(missing), *sys.meta_path])
    assert run(monkeypatch, "bench") == 2
    assert "pip install typer rich" in capsys.readouterr().err


class Missing:
    """A finder for a package that is not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_convert_writes_a_folder_that_transformers_reads(monkeypatch, capsys, tmp_path):
    model = NystromformerForMaskedLM(NystromformerConfig(**SMALL))
    loads = []
    monkeypatch.setattr(
        encoder, "load_original", lambda *x, **options: loads.append((x, options)) or model
    )
    output = tmp_path / "new"
    words = ("convert", "cp.model", "--output", output, "--num-landmarks", 8, "--num-heads", 2)
    assert run(monkeypatch, *words) == 0
    assert f"Written: {output}" in capsys.readouterr().out
    assert loads == [((Path("cp.model"),), {"num_landmarks": 8, "num_heads": 2})]
    assert NystromformerForMaskedLM.from_pretrained(output).config.num_landmarks == 8
    assert run(monkeypatch, *words) == 2
    assert "`--output` must be a new folder" in capsys.readouterr().err


def test_convert_refuses_what_is_no_checkpoint(monkeypatch, capsys, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert run(monkeypatch, "convert", path, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r".*notes.txt cannot be read as a checkpoint of tensors.*\n", error)
    assert not (tmp_path / "out").exists()


def test_lra_trains_and_says_what_it_found(monkeypatch, capsys, tmp_path):
    words = ("--cache", tmp_path / "cache", "--rows", 20, "--eval-rows", 4)
    assert run(monkeypatch, "lra-data", "listops", *words, "--processes", 1) == 0
    assert "listops: 20 train, 4 validation, 4 test rows, fingerprint" in capsys.readouterr().out
    words = (*words, "--steps", 1, "--batch-size", 2, "--attention", "none")
    assert run(monkeypatch, "lra", "listops", "--output", tmp_path / "run", *words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"listops, none: \d+\.0% of 4 test rows after 1 steps\.", shown)
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lra path-x --output new", "The task must be one of listops, .*, got 'path-x'"),
        ("lra-data path-x", "The task must be one of listops, .*, got 'path-x'"),
        ("lra listops --attention flash --output new", "must be one of nystrom, .*, got 'flash'"),
        ("lra retrieval --output new", "retrieval needs `--data-dir`: .* imdb-same-movie"),
        ("lra text --data-dir none --output new", "must be a folder, got none, which is none"),
    ],
)
def test_lra_refuses_in_one_sentence(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words.split(), *("--cache", "cache")) == 2
    shown = capsys.readouterr().err.strip()
    assert re.search(message, shown)
    assert len(shown.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_bench_replaces_its_own_rows_alone(monkeypatch, capsys, tmp_path, measured):
    words = ("bench", "--lengths", "4096", "--output", tmp_path)
    assert run(monkeypatch, *words) == run(monkeypatch, *words) == 0
    (tmp_path / "scaling.png").write_text("my own")
    assert run(monkeypatch, *words) == 2
    assert "is no former result of it: scaling.png has 6 bytes" in capsys.readouterr().err
    assert (tmp_path / "scaling.png").read_text() == "my own"


@pytest.mark.parametrize("where", ["measure", "sweep"])
def test_an_interrupt_is_said_and_is_no_success(monkeypatch, capsys, tmp_path, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands if where == "sweep" else bench, where, interrupt)
    assert run(monkeypatch, "bench", "--lengths", "4096", "--output", tmp_path / "x") == 130
    assert capsys.readouterr().err.endswith("Interrupted.\n")


def test_a_command_that_is_terminated_leaves_no_partial_files(monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(bench, "measure", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert run(monkeypatch, "bench", "--lengths", "4096", "--output", tmp_path / "x") == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_distill_leaves_folders_of_others_alone(monkeypatch, capsys, tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "mine.txt").write_text("mine")
    words = ("convert", "model", "--distill", "--text", "a.txt", "--output", tmp_path)
    assert run(monkeypatch, *words) == 2
    assert "which holds something else" in capsys.readouterr().err
    assert (tmp_path / "checkpoint-5" / "mine.txt").read_text() == "mine"
