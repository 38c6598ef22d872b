"""Makes the tasks of two documents: are they related? 4,000 bytes of each, two classes.

`read` takes the original files of the ACL Anthology Network: does one paper cite the other?
`same_movie` makes another task of the same form from IMDB, called imdb-same-movie everywhere: are
the two reviews of the same film?
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nystromer.recipes.inputs.rows import label, read_rows, text
from nystromer.recipes.lra.store import Prepared, Split, fit, need_files, read_lines
from nystromer.recipes.lra.text import judgement

LIMIT = 4000
FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
COLUMNS = 5  # label, two names, two texts
LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}
PAIRS = {"train": 40_000, "validation": 4_000, "test": 8_000}
HELD_OUT = 0.1  # of the films of the training file, for validation
Pair = tuple[bytes, bytes, int]


class Review(NamedTuple):
    """Holds what one viewer says of a film."""

    number: int
    film: str
    label: int
    text: bytes


Films = dict[str, list[Review]]


def source(data_dir: Path) -> list[Path]:
    """Finds the original files.

    Raises:
        ValueError: If one of the original files is missing.
    """
    return need_files(
        data_dir,
        FILES.values(),
        "they are in lra_release/tsv_data of the benchmark; the task imdb-same-movie stands in",
    )


def read(paths: Sequence[Path]) -> Prepared:
    """Reads the original files.

    Raises:
        ValueError: If one is cut short or a label is neither 0 nor 1.
    """
    return splits({name: aan_pairs(path) for name, path in zip(FILES, paths, strict=True)})


def aan_pairs(path: Path) -> Iterator[Pair]:
    """Gives the pairs in one of the original files."""
    for number, line in enumerate(tqdm(read_lines(path), path.name, leave=False), 1):
        fields = line.split(b"\t")
        place = f"{path}, line {number}"
        if len(fields) != COLUMNS:
            raise ValueError(
                f"{place} must hold {COLUMNS} fields with tabs between, got {len(fields)}; the "
                "file is cut short or damaged."
            )
        if fields[0] not in LABELS:
            raise ValueError(
                f"{place}: a label must be 0 or 1, got {fields[0].decode(errors='replace')!r}."
            )
        yield fields[3], fields[4], LABELS[fields[0]]


def same_movie(
    paths: Sequence[Path], pairs: dict[str, int] | None = None, seed: int = 0
) -> Prepared:
    """Makes the rows of imdb-same-movie: half of the pairs are reviews of one film, half of two.

    For every pair of one film there is one of two films with the same first review and a second of
    the same judgement, so that judgements tell nothing. Films validated on are not trained on.

    Args:
        paths: Training and test file with columns text, label and movie.
        pairs: Of every split, if there are so many; 40,000, 4,000 and 8,000 if None.

    Raises:
        ValueError: If a file cannot be read or lacks a column.
    """
    pairs, draw = pairs or PAIRS, random.Random(f"imdb-same-movie {seed}")
    train, test = (by_movie(path) for path in paths)
    movies = sorted(train)
    draw.shuffle(movies)
    held = movies[: int(HELD_OUT * len(movies))]
    validation = {movie: train.pop(movie) for movie in held}
    parts = {"train": train, "validation": validation, "test": test}
    return splits({name: matched(parts[name], pairs[name], draw) for name in parts})


def by_movie(path: Path) -> Films:
    """Returns the reviews in a file of rows, by the film."""
    found: Films = defaultdict(list)
    columns = {"text": text, "label": label, "movie": label}
    for number, row in enumerate(read_rows(path, columns), 1):
        film, judged = str(row["movie"]), judgement(row["label"], f"{path}, row {number}")
        found[film].append(Review(number, film, judged, row["text"].encode()))
    return found


def matched(films: Films, count: int, draw: random.Random) -> Iterator[Pair]:
    """Gives pairs of one film and pairs of two, in turn; no pair of one film comes twice.

    Raises:
        ValueError: If the reviews of a judgement are not of at least two films with several.
    """
    several = [reviews for reviews in films.values() if len(reviews) > 1]
    for judged in (0, 1):
        if sum(any(review.label == judged for review in reviews) for reviews in several) < 2:
            raise ValueError(
                f"imdb-same-movie needs at least two films with several reviews, one of them with "
                f"label {judged}, in every split; got {len(several)} films."
            )
    most = min(count // 2, sum(math.comb(len(reviews), 2) for reviews in several))
    used: set[frozenset[int]] = set()
    while len(used) < most:
        first, second = draw.sample(draw.choice(several), 2)
        pair = frozenset((first.number, second.number))
        if pair in used:
            continue
        used.add(pair)
        other = second
        while other.film == first.film or other.label != second.label:
            other = draw.choice(draw.choice(several))
        yield first.text, second.text, 1
        yield first.text, other.text, 0


def splits(parts: Mapping[str, Iterable[Pair]]) -> Prepared:
    """Returns the pairs of every split as documents."""
    made, notes = {}, []
    for name, part in parts.items():
        pairs = list(part)
        if not pairs:
            raise ValueError(f"The {name} file must hold pairs, got none; it is cut short.")
        first, cut_first = fit((a for a, _, _ in pairs), LIMIT, f"first {name} documents")
        second, cut_second = fit((b for _, b, _ in pairs), LIMIT, f"second {name} documents")
        made[name] = Split(first, [related for _, _, related in pairs], second)
        notes += cut_first + cut_second
    return Prepared(made, notes)
