import bz2
import gzip
import io
import json
import lzma
import sys

import pyarrow
import pytest
from pyarrow import parquet

from nystromer.recipes.inputs.lines import BadLines
from nystromer.recipes.inputs.rows import label, read_rows, text

ROWS = [{"text": "one, two", "label": 1}, {"text": "drei\nvier ü", "label": 0}]
JSON = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = '\ufefftext,label\n"one, two",1\n"drei\nvier ü",0\n'


def zstandard(path, mode, encoding):
    return io.TextIOWrapper(pyarrow.output_stream(str(path), compression="zstd"), encoding=encoding)


OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": zstandard}


@pytest.mark.parametrize("compression", OPENERS)
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", JSON), ("a.csv", CSV)],
)
def test_read_rows_reads_every_format_and_compression(tmp_path, name, content, compression):
    path = tmp_path / (name + compression)
    with OPENERS[compression](path, "wt", encoding="utf-8") as file:
        file.write(content)
    found = list(read_rows(path, ["text", "label"]))
    assert [row["text"] for row in found] == [row["text"] for row in ROWS]
    assert [int(row["label"]) for row in found] == [1, 0]


def test_read_rows_reads_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS * 300), path)
    assert list(read_rows(path, ["label"])) == ROWS * 300


def test_a_quotation_mark_in_tsv_is_a_letter(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"so\t1\nand" so\t0\n')
    assert [row["text"] for row in read_rows(path)] == ['"so', 'and" so']


def test_read_rows_takes_every_line_of_a_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("eins\r\n\nzwei ü".encode())
    assert list(read_rows(path)) == [{"text": "eins"}, {"text": ""}, {"text": "zwei ü"}]


def test_read_rows_reads_fields_longer_than_csv_allows_by_default(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert len(next(read_rows(path))["text"]) == 200_000


BROKEN = [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n{"text": "b"}\n', "line 2: not JSON"),
    ("a.jsonl", b'{"text": "a"}\n[1]\n{"text": "b"}\n', "line 2: not a JSON object but a list"),
    ("a.jsonl", b'{"text": "a"}\n\xff\n{"text": "b"}\n', "line 2: not UTF-8 text"),
    (
        "a.jsonl",
        b'{"text": "a"}\n\0\n{"text": "b"}\n',
        r"line 2: not text but binary \(a zero byte",
    ),
    (
        "a.jsonl",
        b'{"text": "a"}\n{"a": 1}\n{"text": "b"}\n',
        "line 2: has no column 'text'",
    ),
    ("a.csv", b"text,n\na,1\nx\nb,2\n", "line 3: 1 fields where the first line has 2"),
    ("a.jsonl", b'{"n": 1}\n{"text": "a"}\n{"text": "b"}\n', "line 1: has no column 'text'"),
    *(
        ("a.jsonl", b'{"text": "a"}\n{"text": %s}\n{"text": "b"}\n' % value, f"line 2: {message}")
        for value, message in (
            (b"3", r"the column 'text' must hold text, got 3 \(int\)"),
            (b"null", "has no value in the column 'text'"),
            (b'["a"]', r"the column 'text' must hold text, got \['a'\] \(list\)"),
            (b'"\\ud83d"', r"not text but half of a character \(a lone surrogate\)"),
            (b'"a", "more": [{"x": "\\ud83d"}]', "not text but half of a character"),
            (b'"a", "n": NaN', r"not JSON \(NaN is no value of JSON\)"),
            (b'"a", "text": "c"', r"not JSON \(the name 'text' stands twice; rename"),
            (b"[" * 100_000, r"not JSON \(maximum recursion depth exceeded"),
            (b"1" * 5000, r"not JSON \(Exceeds the limit"),
        )
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_read_rows_names_the_line_or_counts_it(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}, {message}.*; correct it\.$"):
        list(read_rows(path, {"text": text}))  # of a command that has no such option
    with pytest.raises(ValueError, match=rf"{name}, {message}.*; .* by --skip-bad-lines\.$"):
        list(read_rows(path, {"text": text}, BadLines(skip=False)))
    bad_lines = BadLines(skip=True)
    assert [row["text"] for row in read_rows(path, {"text": text}, bad_lines)] == ["a", "b"]
    assert bad_lines.count == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, r"none.jsonl cannot be read: No such file or directory\.$"),
        ("a.jsonl", b"", "a.jsonl holds no rows that can be read"),
        ("a.csv", b"", "a.csv holds no rows"),
        ("a.csv", b"text,label\n", "a.csv holds no rows"),
        ("a.parquet", b"", "a.parquet cannot be read"),
        ("a.parquet", b"no such thing", "a.parquet cannot be read"),
        ("a.jsonl", JSON.encode(), "has no column 'label2'; it has 'text', 'label'"),
        ("a.csv", CSV.encode(), "has no column 'label2'; it has 'text', 'label'"),
        ("a.txt", b"a\n", "has no column 'label2'; it has 'text'"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz cannot be read: Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(JSON.encode(), mtime=0)[:20],
            "a.jsonl.gz cannot be read: Compressed",
        ),
        ("a.jsonl.xz", b"plain", "a.jsonl.xz cannot be read: Input format not supported"),
        ("a.jsonl.xz", lzma.compress(JSON.encode())[:40], "a.jsonl.xz cannot be read: Compressed"),
        ("a.jsonl.zst", b"plain", "a.jsonl.zst cannot be read"),
    ],
)
def test_read_rows_refuses(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name, ["label2"]))


def test_a_binary_file_has_no_rows_even_with_bad_lines_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ValueError, match="holds no rows that can be read"):
        list(read_rows(path, bad_lines=BadLines(skip=True)))


def test_parquet_names_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ImportError, match=r"need pyarrow: pip install pyarrow\."):
        list(read_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("value", [[0], {}, float("nan"), float("-inf"), "", "NaN", "inf", 10**400])
def test_what_is_no_label_is_a_bad_line(tmp_path, value):
    path = tmp_path / "a.parquet" if isinstance(value, float) else tmp_path / "a.jsonl"
    rows = [{"text": "a", "label": value}, {"text": "b", "label": 1.5}]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="line 1: the column 'label' must hold a label, got"):
        list(read_rows(path, {"label": label}))
    found = list(read_rows(path, {"label": label}, BadLines(skip=True)))
    assert [row["label"] for row in found] == [1.5]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_other_systems_are_read(tmp_path, end, delimiter):
    lines = ["text,n", '"a, b; c\td",1', '"d\ne",2']
    path = tmp_path / "a.csv"
    path.write_bytes(end.join(x.replace(",", delimiter) for x in lines).encode())
    found = list(read_rows(path, {"text": text}))
    wanted = [lines[1][1:10].replace(",", delimiter), "d\ne"]
    assert [(row["text"], row["n"]) for row in found] == [(wanted[0], "1"), (wanted[1], "2")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_lines_that_end_in_cr_are_read(tmp_path, name):
    line = '{"text": "a"}' if name == "a.jsonl" else "a"
    (tmp_path / name).write_bytes(f"{line}\r{line}\r".encode())
    assert list(read_rows(tmp_path / name, {"text": text})) == [{"text": "a"}] * 2


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_a_column_that_stands_twice_is_refused(tmp_path, name):
    if name == "a.parquet":
        columns = [pyarrow.array(["a"]), pyarrow.array([1]), pyarrow.array(["b"])]
        table = pyarrow.Table.from_arrays(columns, names=["text", "label", "text"])
        parquet.write_table(table, tmp_path / name)
    else:
        lines = "text,label,text\na,1,b\n"
        (tmp_path / name).write_text(lines.replace(",", "\t") if name == "a.tsv" else lines)
    with pytest.raises(ValueError, match=rf"{name}: the name 'text' stands twice; rename one"):
        list(read_rows(tmp_path / name, {"text": text}, BadLines(skip=True)))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nystromer.recipes.inputs.lines.LONGEST", 1000)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("[" * 5000)
    with pytest.raises(ValueError, match=r"a.jsonl.gz, line 1: must have less than 1,000 letters"):
        list(read_rows(tmp_path / "a.jsonl.gz"))
