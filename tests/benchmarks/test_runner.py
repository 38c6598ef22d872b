import subprocess
import sys

import pytest

from benchmarks import __main__ as runner

SCRIPTS = runner.scripts()
KERNELS = "attention.compile_kernels"  # changes how this process would run Triton


def run(*words):
    command = [sys.executable, "-m", "benchmarks", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_list_says_what_each_script_shows_and_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    runner.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines[:-2] if not line.startswith(" ")]
    assert names == list(SCRIPTS)
    assert "attention.cpu" in names
    assert "publish" in names
    assert "common" not in names


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_say_in_a_sentence_what_they_show(name):
    sentence, usage = SCRIPTS[name].split("\n\n")[:2]
    assert sentence.split()[0] in ("Shows", "Draws", "Writes")
    assert sentence.endswith(".")
    assert f"python -m benchmarks {name}" in usage
    assert runner.duration(SCRIPTS[name])


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != KERNELS])
def test_help_measures_nothing(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--help"])
    with pytest.raises(SystemExit) as end:
        runner.main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m benchmarks {name}" in shown
    assert SCRIPTS[name].split("\n\n")[0] in shown


def test_help_compiles_nothing():
    pytest.importorskip("triton")
    code, shown = run(KERNELS, "--help")
    assert code == 0
    assert f"usage: python -m benchmarks {KERNELS}" in shown


def test_an_unknown_name_is_one_sentence():
    said = "No benchmark is called 'attention.gup'; `python -m benchmarks` lists them.\n"
    assert run("attention.gup") == (2, said)
