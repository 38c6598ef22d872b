import errno
import os
import stat

import pytest

from nystromer.recipes.files import outputs
from nystromer.recipes.files.outputs import new_file, new_folder

OPEN = {"file": lambda path: new_file(path, ".txt"), "folder": new_folder}


def write(kind, path):
    with OPEN[kind](path) as partial:
        (partial if kind == "file" else partial / "a.txt").write_text("new")


def content(kind, path):
    return (path if kind == "file" else path / "a.txt").read_text()


@pytest.mark.parametrize("kind", OPEN)
def test_an_output_appears_whole_where_nothing_was(tmp_path, kind):
    path = tmp_path / "out.txt"
    with OPEN[kind](path) as partial:
        assert not path.exists()
        (partial if kind == "file" else partial / "a.txt").write_text("new")
    assert content(kind, path) == "new"
    assert os.listdir(tmp_path) == ["out.txt"]
    mode = stat.S_IMODE(path.stat().st_mode)
    (tmp_path / "plain").mkdir() if kind == "folder" else (tmp_path / "plain").touch()
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)  # as the user's own


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("taken", ["file", "folder", "link", "broken link"])
def test_what_is_there_is_not_replaced(tmp_path, kind, taken):
    path, mine = tmp_path / "out.txt", tmp_path / "mine"
    mine.mkdir()
    (mine / "a.txt").write_text("mine")
    if taken == "folder":
        mine.rename(path)
    elif taken == "file":
        path.write_text("mine")
    else:
        path.symlink_to(mine if taken == "link" else tmp_path / "nothing")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="`--output` must be a new"):
        write(kind, path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", OPEN)
def test_the_slower_of_two_is_refused(tmp_path, kind):
    path = tmp_path / "out.txt"

    def write_while_another_does():
        with OPEN[kind](path) as partial:
            (partial if kind == "file" else partial / "a.txt").write_text("mine")
            write(kind, path)

    with pytest.raises(ValueError, match=r"written to: (File exists|Directory not empty)"):
        write_while_another_does()
    assert content(kind, path) == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_nothing_is_left_of_what_failed(tmp_path, kind, error):
    with pytest.raises((error, ValueError)), OPEN[kind](tmp_path / "out.txt"):
        raise error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300 + ".txt", "cannot be written to: File name too long"),
        ("taken/out.txt", "(cannot be written to: Not a directory|in a folder, got)"),
        ("taken/in/out.txt", "(cannot be written to: Not a directory|in a folder, got)"),
    ],
)
def test_what_the_system_says_is_one_sentence_before_any_work(tmp_path, kind, name, message):
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=rf"`--output` .*{message}"), OPEN[kind](tmp_path / name):
        raise AssertionError("work was begun")
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("code", [errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_takes_no_files_is_one_sentence(tmp_path, kind, code, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    for name in ("touch", "mkdir"):
        monkeypatch.setattr(outputs.Path, name, refuse)
    with pytest.raises(ValueError, match=rf"cannot be written to: {os.strerror(code)}\."):
        write(kind, tmp_path / "out.txt")
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_links_takes_a_file_too(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write("file", tmp_path / "out.txt")
    assert content("file", tmp_path / "out.txt") == "new"
    with pytest.raises(ValueError, match=r"must be a new \.txt file"):
        write("file", tmp_path / "out.txt")


def test_folders_above_are_made_and_go_again(tmp_path):
    with pytest.raises(ValueError, match="no"), new_folder(tmp_path / "a" / "b" / "c"):
        raise ValueError("no")
    assert os.listdir(tmp_path) == []
    write("folder", tmp_path / "a" / "b" / "c")
    assert content("folder", tmp_path / "a" / "b" / "c") == "new"


@pytest.mark.parametrize("change", ["nothing", "more", "less", "edited", "other command"])
def test_a_former_result_is_replaced_if_it_is_whole_and_unchanged(tmp_path, change):
    path = tmp_path / "out"
    for _ in range(2):
        with new_folder(path, made_by="a command") as partial:
            (partial / "a.txt").write_text("old")
    if change == "more":
        (path / "mine.txt").touch()
    elif change == "less":
        (path / "a.txt").unlink()
    elif change == "edited":
        (path / "a.txt").write_text("own")
    before = sorted(path.iterdir())
    made_by = "another" if change == "other command" else "a command"
    if change == "nothing":
        with new_folder(path, made_by=made_by) as partial:
            (partial / "b.txt").write_text("new")
        assert {x.name for x in path.iterdir()} == {"b.txt", "manifest.json"}
    else:
        message = "is no former result of it: "
        with pytest.raises(ValueError, match=message), new_folder(path, made_by=made_by):
            pass
        assert sorted(path.iterdir()) == before
    assert os.listdir(tmp_path) == ["out"]
