"""The command `nystromer mil inspect`."""

import re
import sys

import numpy as np
import pytest

from nystromer import cli
from nystromer.mil.figures import sizes_figure


@pytest.fixture
def inspect(monkeypatch, capsys, tmp_path):
    """The exit code of `nystromer mil inspect <words>`, what it shows, and what goes wrong."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["nystromer", "mil", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        shown = capsys.readouterr()
        return stop.value.code or 0, shown.out, shown.err.strip()

    return run


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("case_id,slide_id,label\np1,s1.svs,A\np1,s2.svs,A\np2,s3.svs,B\n")
    return path


def test_one_table_says_what_is_there(inspect, write, labels, tmp_path):
    folder = write("trident").root
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,s1,s3,\n1,s2,,\n")
    words = ("--labels", labels, "--splits", tmp_path / "splits_0.csv", "--output", "sizes.png")
    code, shown, error = inspect(folder, *words, "--all-values")
    assert (code, error) == (0, "")
    for line in (
        r"bags +3", r"written by +TRIDENT", r"patches +48", r"patches of a bag +1 to 40, median 7",
        r"width +6", r"dtype +float32", r"encoder +uni_v1",
        r"magnification +20x", r"coordinates +level-0 pixels",
        r"side of a patch +512 level-0 pixels", r"bags by `label` +A 2, B 1", r"patients +2",
        r"features without label +0", r"labels without features +0", r"names of several files +0",
        r"files that cannot be read +0", r"split splits_0 +train 2, val 1", r"in two parts +0",
    ):  # fmt: skip
        assert re.search(line, shown), line
    assert "Written: sizes.png" in shown
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_a_patients_slides_may_be_one_bag(inspect, write, labels):
    code, shown, _ = inspect(write("npy").root, "--labels", labels, "--bag", "patient")
    assert code == 0
    assert re.search(r"bags +2 ", shown)
    assert re.search(r"encoder +not said", shown)


def test_the_polarity_of_survival_is_shown(inspect, write, labels):
    labels.write_text("slide_id,survival_months,censorship\ns1,3,1\ns2,4,0\ns3,9,1\n")
    code, shown, _ = inspect(write("npy").root, "--labels", labels)
    assert code == 0
    shown = " ".join(shown.split())
    assert "1 events, 2 censored; time in `survival_months`; `censorship` is read as 1 =" in shown


def test_what_is_missing_is_listed_and_skipped_on_request(inspect, write, labels):
    labels.write_text("slide_id,label\ns1,A\ns2,B\ns7[b],B\n")
    folder = write("npy").root
    code, shown, error = inspect(folder, "--labels", labels)
    assert re.search(r"features without label +1: s3", shown)
    assert re.search(r"labels without features +1: s7\[b\]", shown)
    assert (code, error.count("\n")) == (2, 0)
    assert "1 slide (s3) has no label" in error
    assert inspect(folder, "--labels", labels, "--skip-missing")[0] == 0


def test_names_that_several_files_have_are_listed(inspect, write):
    write("npy", "both/"), write("pt", "both/more")
    code, shown, error = inspect("both")
    assert re.search(r"names of several files +3: s1, s2, s3", shown)
    assert (code, error) == (
        2,
        "3 slides (s1, s2, s3) are in more than one file; name a folder with one of them.",
    )


def test_patients_in_two_parts_are_shown(inspect, write, labels, tmp_path):
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,s1,s2,s9\n")
    words = ("--labels", labels, "--splits", tmp_path)
    code, shown, error = inspect(write("npy").root, *words)
    assert re.search(r"in two parts +1: p1 \(train and val\)", shown)
    assert re.search(r"without features or label +1: s9", shown)
    assert code == 2
    assert "p1 stands in train and val of the split splits_0; keep all slides" in error


def test_bad_features_are_one_sentence(inspect, write):
    root = write("npy").root
    np.save(root / "s3.npy", np.full((2, 6), np.nan, np.float32))
    assert inspect(root)[0] == 0  # values are not looked at
    code, shown, error = inspect(root, "--all-values")
    assert code == 2
    assert re.search(r"files that cannot be read +1", shown)
    assert re.fullmatch(r"The features of s3 .* hold NaN or infinity in 2 of 2 patches; .*", error)
    np.save(root / "s2.npy", np.ones((2, 5), np.float32))
    code, shown, error = inspect(root)
    assert re.search(r"width +6 \(2\), 5 \(1\)", shown)
    assert "All features must have one width, got" in error
    (root / "s1.npy").write_bytes(b"\x93NUMPY")
    (root / "s0.npy").write_bytes(b"")
    code, shown, error = inspect(root)
    assert (code, error.count("\n")) == (2, 0)
    assert re.search(r"s0.npy cannot be read: .* \(2 such files\)", error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none", "There is no none; name a folder with feature files"),
        (". --labels none.csv", "none.csv cannot be read as a table"),
        (". --output labels.csv", "`--output` must be a new .png file in a folder, got labels.csv"),
        (". --bag case", "`--bag` must be slide or patient, got 'case'"),
    ],
)
def test_bad_words_are_one_sentence(inspect, write, labels, tmp_path, words, message):
    write("npy")
    code, _, error = inspect(*words.split())
    assert code == 2
    assert re.search(message, error)
    assert len(error.splitlines()) == 1


def test_progress_is_shown_on_a_terminal(inspect, write, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich can tell
    assert "Looking at files" in inspect(write("npy").root)[2]


def test_the_figure_has_a_bar_a_class():
    figure = sizes_figure({"A": [10, 300, 20_000], "B": [50]})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["A", "B"]
    assert axes.get_title(loc="left") == "Patches of 4 bags, median 175"
    assert sum(bar.get_height() for bar in axes.containers[0]) == 3
    assert sizes_figure({"": [1]}).axes[0].get_legend() is None
