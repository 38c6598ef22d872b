"""Makes the task ListOps: nested lists of digits, each with an operator; the answer is a digit.

    [MAX 4 [MED 1 9 [MIN 3 5 ] ] [SM 8 7 ] ]  ->  5

The `basic` specification of Long Range Arena (arXiv:2011.04006, section 2.2.1).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nystromer.recipes.lra.store import Prepared, Split, in_parallel, read_lines

TOKENS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")  # a digit's id is the digit
ID = {token: i for i, token in enumerate(TOKENS)}
CLOSE = ID["]"]
APPLY: dict[int, Callable[[Sequence[int]], int]] = {
    ID["[MIN"]: min,
    ID["[MAX"]: max,
    ID["[MED"]: lambda x: (sorted(x)[(len(x) - 1) // 2] + sorted(x)[len(x) // 2]) // 2,
    ID["[SM"]: lambda x: sum(x) % 10,
}
MAX_DEPTH, MAX_ARGUMENTS = 10, 10
LENGTHS = range(501, 2000)  # of tokens, without parentheses
OPERATOR_SHARE = 0.25  # of the places above the greatest depth
ROWS = {"train": 96_000, "validation": 2_000, "test": 2_000}
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
CHUNK = 1000  # rows with a random stream of their own


def evaluate(source: str) -> int:
    """Returns the value of a row in the original notation, `( ( ( [MAX 2 ) 9 ) ] )`.

    Parentheses may lack. MED is the median rounded down, SM the sum modulo 10.

    Raises:
        ValueError: If it is not one whole expression.
    """
    return value(encode(source))


def encode(source: str) -> list[int]:
    """Returns the row's tokens as ids, without the parentheses, which only repeat the brackets.

    Raises:
        ValueError: If a token is unknown or a parenthesis has no partner.
    """
    words = source.replace("(", " ").replace(")", " ").split()
    unknown = next((word for word in words if word not in ID), None)
    if unknown is not None:
        known = " ".join(TOKENS)
        raise ValueError(f"A ListOps row must hold the tokens {known} only, got {unknown!r}.")
    if source.count("(") != source.count(")"):
        raise ValueError(
            f"A ListOps row must close every parenthesis, got {source.count('(')} opened and "
            f"{source.count(')')} closed."
        )
    return [ID[word] for word in words]


def value(ids: Iterable[int]) -> int:
    """Returns the value of an expression in ids.

    Raises:
        ValueError: If the tokens are not one whole expression.
    """
    open_lists: list[list[int]] = [[]]  # operator and arguments; the outermost has no operator
    for i in ids:
        if i in APPLY:
            open_lists.append([i])
        elif i != CLOSE:
            open_lists[-1].append(i)
        elif len(open_lists) > 1 and len(open_lists[-1]) > 1:
            operator, *arguments = open_lists.pop()
            open_lists[-1].append(APPLY[operator](arguments))
        else:
            raise ValueError("A ListOps row must close only lists that hold something.")
    if len(open_lists) > 1 or len(open_lists[0]) != 1:
        raise ValueError(
            f"A ListOps row must be one whole expression, got {len(open_lists) - 1} lists that are "
            f"not closed and {len(open_lists[0])} values outside."
        )
    return open_lists[0][0]


def generate(
    rows: dict[str, int] | None = None, *, seed: int = 0, processes: int | None = None
) -> Prepared:
    """Makes rows by the seed alone, whatever the number of processes.

    Args:
        rows: Of every split; the benchmark's 96,000, 2,000 and 2,000 if None.
        processes: As many as this process may use if None.
    """
    rows = rows or ROWS
    total = sum(rows.values())
    chunks = range(-(-total // CHUNK))
    made = in_parallel(partial(chunk, seed), chunks, "ListOps", processes)
    everything = [row for part in made for row in part]
    splits, start = {}, 0
    for name, count in rows.items():
        part = everything[start : start + count]
        splits[name] = Split([np.frombuffer(x, np.uint8) for x, _ in part], [y for _, y in part])
        start += count
    return Prepared(splits)


def chunk(seed: int, index: int) -> list[tuple[bytes, int]]:
    """Makes CHUNK rows: tokens, one byte each, and value."""
    draw = random.Random(f"listops {seed} {index}").random
    rows: list[tuple[bytes, int]] = []
    while len(rows) < CHUNK:
        ids: list[int] = []
        answer = grow(ids, 1, draw)
        if len(ids) in LENGTHS:
            rows.append((bytes(ids), answer))
    return rows


def grow(ids: list[int], depth: int, draw: Callable[[], float]) -> int:
    """Appends a random expression to `ids` and returns its value."""
    if depth == MAX_DEPTH or draw() > OPERATOR_SHARE:
        digit = int(10 * draw())
        ids.append(digit)
        return digit
    operator = 10 + int(4 * draw())
    ids.append(operator)
    count = 2 + int((MAX_ARGUMENTS - 1) * draw())
    arguments = [grow(ids, depth + 1, draw) for _ in range(count)]
    ids.append(CLOSE)
    return APPLY[operator](arguments)


def read(files: Sequence[Path]) -> Prepared:
    """Reads the original files basic_train.tsv, basic_val.tsv and basic_test.tsv.

    Raises:
        ValueError: If one is missing or cut short, or a row's value is not its target.
    """
    return Prepared({split: read_split(path) for split, path in zip(FILES, files, strict=True)})


def read_split(path: Path) -> Split:
    """Reads one of the original files."""
    documents, labels = [], []
    for number, line in enumerate(tqdm(read_lines(path), path.name, leave=False), 1):
        source, _, target = line.decode("ascii", "replace").partition("\t")
        if number == 1 and (source, target) == ("Source", "Target"):
            continue
        try:
            ids = encode(source)
            found = value(ids)
            if len(ids) > LENGTHS.stop:
                raise ValueError(f"A row must have at most {LENGTHS.stop} tokens, got {len(ids)}.")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if target != str(found):
            raise ValueError(
                f"{path}, line {number}: the target must be the value {found}, got {target!r}; the "
                "file is cut short or damaged."
            )
        documents.append(np.array(ids, np.uint8))
        labels.append(found)
    if not labels:
        raise ValueError(f"{path} must hold rows, got none; the file is cut short.")
    return Split(documents, labels)
