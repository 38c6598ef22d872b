"""Draws the task Pathfinder: does one dashed path join the two circles? 32 x 32 grey pixels.

Two paths of 14 dashes each wind through every image, among shorter ones that distract. The circles
mark both ends of one of the two (1), or an end of each (0). The rules are those of the published
renderer (Linsley et al. 2018, arXiv:1805.08315; the settings of Long Range Arena): a path goes on
from its last dash at an angle drawn with density cos², its dashes keep a distance from all others,
the first dashes of the two paths are 7 pixels apart, in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator, default_rng

from nystromer.recipes.lra.store import Prepared, Split, in_parallel

SIZE, BORDER = 32, 1  # pixels
DASHES, DISTRACTORS, DISTRACTOR_DASHES = 14, 5, 4
STEPS = 2 * DASHES + DISTRACTORS * DISTRACTOR_DASHES
STEP = 4  # pixels from bend to bend: a gap, a dash of 2, a gap
POINTS = np.arange(STEP, dtype=float)  # of a step; the dash is from point 1 to point 3
APART = 2.0  # pixels between steps that do not follow one another
SEEDS_APART = 7.0
RADIUS = 1.5  # of a circle
GREY, WHITE = 0.75, 1.0  # a dash, a circle
RETRIES = 10  # places for a distractor
CELLS, MARGIN = 2, 10  # of the board: cells a pixel, cells around it
ROWS = {"train": 160_000, "validation": 20_000, "test": 20_000}
CHUNK = 500  # images with a random stream of their own

TURNS = 24
TURN = np.pi * ((np.arange(TURNS) + 0.5) / TURNS - 0.5)  # from the last step, to either side
ANY_TURN = 2 * TURN


def generate(
    rows: dict[str, int] | None = None, *, seed: int = 0, processes: int | None = None
) -> Prepared:
    """Draws images by the seed alone, whatever the number of processes.

    Args:
        rows: Of every split; 160,000, 20,000 and 20,000 if None.
        processes: As many as this process may use if None.
    """
    rows = rows or ROWS
    chunks = range(-(-sum(rows.values()) // CHUNK))
    made = list(in_parallel(partial(chunk, seed), chunks, "Pathfinder", processes))
    pixels = np.concatenate([x for x, _ in made]).reshape(-1, SIZE * SIZE)
    labels = np.concatenate([y for _, y in made])
    ends = np.cumsum([0, *rows.values()])
    return Prepared(
        {
            name: Split(list(pixels[a:b]), labels[a:b].tolist())
            for name, a, b in zip(rows, ends[:-1], ends[1:], strict=True)
        }
    )


def chunk(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws CHUNK images, uint8 [rows, 32, 32], and labels."""
    rng = default_rng([seed, index])
    dashes = draw_paths(CHUNK, rng)
    labels = rng.integers(2, size=CHUNK)
    return render(dashes, circles(dashes, labels, rng)), labels


def draw_paths(rows: int, rng: Generator) -> np.ndarray:
    """Returns dashes [rows, STEPS, 2 ends, 2], NaN where a distractor found no room."""
    boards: list[Board] = []
    while sum(len(board.dashes) for board in boards) < rows:
        boards.append(target_paths(2 * rows, rng))
    board = Board(
        np.concatenate([board.dashes for board in boards])[:rows],
        np.concatenate([board.taken for board in boards])[:rows],
    )
    for i in range(DISTRACTORS):
        add_distractor(board, 2 * DASHES + i * DISTRACTOR_DASHES, rng)
    return board.dashes


def target_paths(rows: int, rng: Generator) -> Board:
    """Draws both long paths, step by step in turn; images without room for one are dropped."""
    board = Board.empty(rows)
    first = rng.uniform(2 * SEEDS_APART, SIZE - 2 * SEEDS_APART, (rows, 2))
    second = first + SEEDS_APART * direction(rng.uniform(-np.pi, np.pi, rows))
    row = np.arange(rows)
    heads = [(first, np.zeros(rows)), (second, np.zeros(rows))]
    for i in range(DASHES):
        for path in range(2):
            *head, room = board.advance(row, path * DASHES + i, *heads[path], rng, new=i == 0)
            heads[path] = head[0], head[1]
            heads = [(position[room], angle[room]) for position, angle in heads]
            row = row[room]
    return Board(board.dashes[row], board.taken[row])


def add_distractor(board: Board, first: int, rng: Generator) -> None:
    """Draws a short path in every image, unless RETRIES places had no room for it."""
    todo = np.arange(len(board.dashes))
    for _ in range(RETRIES):
        row, position = todo, rng.uniform(BORDER, SIZE - 1 - BORDER, (len(todo), 2))
        angle = np.zeros(len(row))
        for i in range(DISTRACTOR_DASHES):
            position, angle, room = board.advance(row, first + i, position, angle, rng, new=i == 0)
            row, position, angle = row[room], position[room], angle[room]
        todo = np.setdiff1d(todo, row)
        board.clear(todo, first)


@dataclass
class Board:
    """Holds what is drawn so far of many images.

    Args:
        dashes: [rows, STEPS, 2 ends, 2].
        taken: [rows, cells, cells], 1 + the step that keeps others away from the cell, or 0.
    """

    dashes: np.ndarray
    taken: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> Board:
        cells = CELLS * SIZE + 2 * MARGIN
        dashes = np.full((rows, STEPS, 2, 2), np.nan)
        return cls(dashes, np.zeros((rows, cells, cells), np.uint8))

    def advance(
        self,
        row: np.ndarray,
        i: int,
        position: np.ndarray,
        angle: np.ndarray,
        rng: Generator,
        new: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Writes step i of some rows, at an angle drawn from those that have room.

        Args:
            position, angle: Where the step before ended, [rows, 2] and [rows].
            new: Whether a path begins here, at any angle.

        Returns:
            Position and angle at the step's end, and in which rows there was room.
        """
        turns, shares = (ANY_TURN, np.ones(TURNS)) if new else (TURN, np.cos(TURN) ** 2)
        jitter = rng.uniform(-0.5, 0.5, (len(row), 1)) * (turns[1] - turns[0])
        angles = angle[:, None] + turns + jitter
        heading = direction(angles)[:, :, None]  # [rows, TURNS, 1, 2]
        points = position[:, None, None] + POINTS[:, None] * heading
        ends = position[:, None] + STEP * heading[:, :, 0]
        inside = ((ends >= BORDER) & (ends <= SIZE - 1 - BORDER)).all(-1)
        y, x = np.moveaxis(cell(points.clip(0, SIZE - 1)), -1, 0)
        by = self.taken[row[:, None, None], y, x]
        free = inside & ((by == 0) | ((by == i) & (not new))).all(-1)  # i: the step before
        reached = (free * shares).cumsum(1)
        drawn = rng.random((len(row), 1)) * reached[:, -1:]
        chosen = np.arange(len(row)), (reached > drawn).argmax(1)
        room = free[chosen]
        step = points[chosen]
        self.dashes[row, i] = step[:, [1, 3]]
        self.take(row[room], i, step[room])
        return ends[chosen], angles[chosen], room

    def take(self, row: np.ndarray, i: int, step: np.ndarray) -> None:
        """Marks the free cells that are less than APART from the step."""
        start, stop = (CELLS * step[:, k] + MARGIN for k in (0, -1))
        line, y, x, _ = near(start, stop, CELLS * APART)
        free = self.taken[row[line], y, x] == 0
        self.taken[row[line[free]], y[free], x[free]] = i + 1

    def clear(self, row: np.ndarray, first: int) -> None:
        """Forgets the steps from the first on."""
        self.dashes[row, first:] = np.nan
        taken = self.taken[row]
        self.taken[row] = np.where(taken > first, 0, taken)


def cell(points: np.ndarray) -> np.ndarray:
    """Returns the cells of the board that points are in."""
    return np.rint(CELLS * points).astype(int) + MARGIN


def direction(angle: np.ndarray) -> np.ndarray:
    """Returns steps of length 1 at these angles."""
    return np.stack([np.sin(angle), np.cos(angle)], -1)


def near(
    start: np.ndarray, stop: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns grid points less than `reach` from each line, [lines, 2]: line, y, x, distance."""
    start, stop = start.astype(np.float32), stop.astype(np.float32)
    (up, right), (top, left) = (stop - start).T[..., None], start.T[..., None]  # each [lines, 1]
    square = up * up + right * right
    half = int(np.ceil(reach + np.sqrt(square.max(initial=0)) / 2 + 0.5))
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(np.int32).reshape(2, 1, -1)
    y, x = np.rint((start + stop) / 2).astype(np.int32).T[..., None]
    y, x = y + dy, x + dx  # [lines, points]
    share = ((y - top) * up + (x - left) * right) / np.maximum(square, 1e-6)
    share = share.clip(0, 1).astype(np.float32)
    away = np.sqrt((y - top - share * up) ** 2 + (x - left - share * right) ** 2)
    line, point = np.nonzero(away < reach)
    return line, y[line, point], x[line, point], away[line, point]


def circles(dashes: np.ndarray, labels: np.ndarray, rng: Generator) -> np.ndarray:
    """Returns the places of the circles, [rows, 2, 2]: where a long path starts, and where it (1)
    or the other (0) stops."""
    start = rng.integers(2, size=len(labels))
    stop = np.where(labels == 1, start, 1 - start)
    rows = np.arange(len(labels))
    last = DASHES * stop + DASHES - 1
    return np.stack([dashes[rows, DASHES * start, 0], dashes[rows, last, 1]], 1)


def render(dashes: np.ndarray, circles: np.ndarray) -> np.ndarray:
    """Returns the images, uint8 [rows, 32, 32]: a pixel is as bright as the nearest dash or
    circle is near."""
    image = np.zeros((len(dashes), SIZE + 2 * MARGIN, SIZE + 2 * MARGIN), np.float32)
    row, step = np.nonzero(~np.isnan(dashes[:, :, 0, 0]))
    lines = dashes[row, step] + MARGIN
    draw(image, row, lines[:, 0], lines[:, 1], 1.0, GREY)
    row, spots = np.repeat(np.arange(len(circles)), 2), circles.reshape(-1, 2) + MARGIN
    draw(image, row, spots, spots, RADIUS + 0.5, WHITE)
    return np.rint(255 * image[:, MARGIN:-MARGIN, MARGIN:-MARGIN]).astype(np.uint8)


def draw(
    image: np.ndarray,
    row: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    reach: float,
    light: float,
) -> None:
    """Draws lines, each in the image of its row, which fade in the last pixel of their reach."""
    line, y, x, away = near(start, stop, reach)
    np.maximum.at(image, (row[line], y, x), light * np.minimum(reach - away, 1))
