"""Bad lines, files and labels, against every command that reads rows."""

from pathlib import Path

import pytest

from bad_input import GOOD, READS_ROWS, WIDE

BAD_LINES = {
    "a number for a text": (b'{"text": 3, "label": 1}', "must hold text, got 3"),
    "a list for a text": (b'{"text": ["a"], "label": 1}', "must hold text, got"),
    "half of a character": (b'{"text": "\\ud800", "label": 1}', "half of a character"),
    "nested brackets": (b"[" * 100_000, "not JSON"),
    "cut": (b'{"text": "a', "not JSON"),
    "a list": (b"[1, 2]", "not a JSON object but a list"),
    "bytes": (b"\xff\xfe\x00", "not UTF-8 text"),
    "a zero byte": (b'{"text": "\0", "label": 1}', "binary"),
    "a name twice": (b'{"text": "a", "text": "b", "label": 1}', "stands twice"),
    "no text": (b'{"label": 1}', "has no column 'text'"),
    "null": (b'{"text": null, "label": 1}', "has no value in the column 'text'"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("first", [True, False], ids=["first line", "last line"])
def test_a_bad_line_is_named_by_every_command(refused, bad, first):
    line, message = BAD_LINES[bad]
    good = GOOD.encode()
    Path("bad.jsonl").write_bytes(line + b"\n" + good if first else good + line + b"\n")
    number = 1 if first else 31
    for command, skips in READS_ROWS.items():
        advice = "correct it, or go on without such lines by --skip" if skips else r"correct it\.$"
        refused(command, rf"bad.jsonl, line {number}: .*{message}.*; {advice}", file="bad.jsonl")


BAD_FILES = {
    "twice.csv": (b"text,label,text\na,1,b\n", "twice.csv: the name 'text' stands twice; rename"),
    "empty.jsonl": (b"", "empty.jsonl holds no rows"),
    "plain.jsonl.gz": (b"no such thing", "plain.jsonl.gz cannot be read: Not a gzipped file"),
    "cut.jsonl.xz": (b"\xfd7zXZ\0\0", "cut.jsonl.xz cannot be read: Compressed file ended"),
    "no.parquet": (b"no such thing", "no.parquet cannot be read"),
    "none.jsonl": (None, "none.jsonl cannot be read: No such file"),
    "none.csv": (None, "none.csv cannot be read: No such file"),
    "none.parquet": (None, "none.parquet cannot be read: No such file"),
    "in.jsonl/in": (None, "in.jsonl/in cannot be read: Not a directory"),
    f"{WIDE}.jsonl": (None, "cannot be read: File name too long"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_by_every_command(refused, name):
    content, message = BAD_FILES[name]
    Path("in.jsonl").touch()
    if content is not None:
        Path(name).write_bytes(content)
    for command in READS_ROWS:
        refused(command, message, file=name)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("NaN", "not JSON"),
        ("1e999", "must hold a label, got inf"),
        ("[0]", "must hold a label, got"),
        ('""', "must hold a label, got ''"),
        ('"nan"', "must hold a label, got 'nan', which is no number"),
        ("null", "has no value in the column 'label'"),
    ],
)
def test_a_bad_label_is_named(refused, label, message):
    Path("bad.jsonl").write_text(f'{GOOD}{{"text": "a", "label": {label}}}\n')
    command = next(iter(READS_ROWS))
    refused(command, rf"bad.jsonl, line 31: .*{message}.*by --skip-bad", file="bad.jsonl")


@pytest.mark.parametrize("held_out", ["", " --eval-file good.jsonl"])
def test_as_many_labels_as_rows_are_refused_before_the_training(refused, held_out):
    Path("many.csv").write_text("text,label\n" + "".join(f"a,{i}\n" for i in range(40)))
    command = next(iter(READS_ROWS)) + held_out
    refused(command, r"got as many different values as rows \(40\)", file="many.csv")
