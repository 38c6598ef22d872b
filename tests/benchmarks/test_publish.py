import pytest

from benchmarks import publish
from benchmarks.attention import tables


@pytest.mark.parametrize("page", publish.PAGES, ids=lambda page: page.name)
def test_pages_show_the_committed_rows(page):
    text = page.read_text(encoding="utf-8")
    assert publish.filled(text) == text, "run python -m benchmarks publish"


def test_every_table_is_shown():
    text = "".join(page.read_text(encoding="utf-8") for page in publish.PAGES)
    assert [name for name in publish.TABLES if f"<!-- table: {name} -->" not in text] == []


def test_everyone_table_marks_what_has_no_number(monkeypatch):
    row = {"n": "1024", "num_landmarks": "64", "dtype": "float32", "direction": "forward"}
    others = [
        {"against": "plain PyTorch", "note": "", "ratio": "2.04"},
        {"against": "transformers", "note": "", "ratio": "0.456"},
        {"against": "linformer", "note": "other disagrees: 1e-2 off", "ratio": ""},
        {"against": "performer", "note": "fails: ImportError", "ratio": ""},
    ]
    monkeypatch.setattr(tables, "results", lambda name: [{**row, **other} for other in others])
    line = publish.TABLES["everyone"]().splitlines()[-1]
    cells = "2.0× | – | 0.46× | – | fails | – | disagrees | –"
    assert line == f"| 1,024 | 64 | float32 | forward | {cells} |"
    notes = tables.everyone_notes_table().splitlines()[2:]
    assert notes[0] == "| linformer | float32 | forward | 1,024 | other disagrees: 1e-2 off |"
    assert len(notes) == 2


def test_with_exponents_names_the_growth():
    points = [(n, n / 7) for n in (4096, 8192, 16_384)]
    panel = tables.Panel("", "", {"ours": ("red", points), "new": ("blue", points[:2])})
    assert list(tables.with_exponents(panel).lines) == ["ours, $N^{1.00}$", "new"]
