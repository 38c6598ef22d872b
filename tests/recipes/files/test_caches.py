import pytest

from nystromer.recipes.files.caches import kept


def make_two(folder):
    (folder / "a.txt").write_text("some text")
    (folder / "in").mkdir()
    (folder / "in" / "b.txt").write_text("more")


def never(folder):
    raise AssertionError("made again")


def test_a_folder_is_made_once(tmp_path):
    path = kept(tmp_path / "cache" / "x", make_two)
    assert kept(path, never) == path
    assert (path / "in" / "b.txt").read_text() == "more"
    assert [x.name for x in path.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("damage", ["cut", "lost", "no manifest", "half a manifest"])
def test_a_folder_that_is_cut_or_incomplete_is_made_anew(tmp_path, damage):
    path = kept(tmp_path / "x", make_two)
    manifest = path / "manifest.json"
    if damage == "cut":
        (path / "a.txt").write_text("some")
    elif damage == "lost":
        (path / "in" / "b.txt").unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:20])
    kept(path, make_two)
    assert (path / "a.txt").read_text() == "some text"
    assert (path / "in" / "b.txt").read_text() == "more"
    assert [x.name for x in tmp_path.iterdir()] == ["x"]


def test_nothing_is_left_of_what_failed(tmp_path):
    with pytest.raises(AssertionError):
        kept(tmp_path / "x", never)
    assert list(tmp_path.iterdir()) == []


def test_two_that_make_the_same_at_a_time_agree(tmp_path):
    def make_while_another_does(folder):
        kept(tmp_path / "x", make_two)
        make_two(folder)

    kept(tmp_path / "x", make_while_another_does)
    assert [x.name for x in tmp_path.iterdir()] == ["x"]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"The cache .* cannot be written to: Not a directory"):
        kept(tmp_path / "file" / "x", make_two)
