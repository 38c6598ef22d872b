import itertools

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image
from scipy import ndimage

from nystromer.recipes.lra import pathfinder, pathfinder_files
from nystromer.recipes.lra.pathfinder import DASHES, SIZE

FINE = 8  # pixels of the test's own picture for one of the task's


@pytest.fixture(scope="module")
def made():
    return pathfinder.generate({"train": 500, "test": 40}, seed=1, processes=1)


@pytest.fixture(scope="module")
def drawn():
    """The geometry behind some images: dashes [rows, steps, 2 ends, 2], labels, circles."""
    rng = default_rng([1, 0])
    dashes = pathfinder.draw_paths(100, rng)
    labels = rng.integers(2, size=100)
    return dashes, labels, pathfinder.circles(dashes, labels, rng)


def filled(lines):
    """The two long paths as unbroken lines, numbered by flood fill."""
    canvas = np.zeros((SIZE * FINE, SIZE * FINE), bool)
    for path in lines:
        for a, b in itertools.pairwise(path):
            for share in np.linspace(0, 1, 8 * FINE):
                y, x = np.rint(FINE * (a + share * (b - a))).astype(int)
                canvas[y - 1 : y + 2, x - 1 : x + 2] = True
    return ndimage.label(canvas, structure=np.ones((3, 3)))[0]


def test_a_label_says_whether_a_path_joins_the_circles(drawn):
    for dashes, label, spots in zip(*drawn, strict=True):
        paths = dashes[: 2 * DASHES].reshape(2, -1, 2)
        components = filled(paths)
        assert components.max() == 2
        a, b = (components[tuple(np.rint(FINE * spot).astype(int))] for spot in spots)
        assert min(a, b) > 0
        assert (a == b) == label


def test_paths_are_as_specified(drawn):
    dashes = drawn[0]
    length = np.linalg.norm(dashes[:, :, 1] - dashes[:, :, 0], axis=-1)
    assert np.allclose(length[: 2 * DASHES][~np.isnan(length[: 2 * DASHES])], 2)
    long_paths = dashes[:, : 2 * DASHES].reshape(-1, 2, DASHES, 2, 2)
    assert not np.isnan(long_paths).any()
    gaps = np.linalg.norm(long_paths[:, :, 1:, 0] - long_paths[:, :, :-1, 1], axis=-1)
    assert (gaps <= 2 + 1e-6).all()
    assert (gaps >= np.sqrt(2) - 1e-6).all()  # a right angle at most
    count = (~np.isnan(dashes[:, 2 * DASHES :, 0, 0])).sum(1)
    assert set(count) <= {0, 4, 8, 12, 16, 20}
    assert count.mean() > 8


def test_paths_keep_apart(drawn):
    for dashes in drawn[0]:
        whole = dashes[~np.isnan(dashes[:, 0, 0])]
        step = np.nonzero(~np.isnan(dashes[:, 0, 0]))[0]
        points = whole[:, :1] + np.linspace(0, 1, 9)[:, None] * (whole[:, 1:] - whole[:, :1])
        away = np.linalg.norm(points[:, None, :, None] - points[None, :, None], axis=-1).min((2, 3))
        apart = abs(step[:, None] - step) > 1
        assert away[apart].min() > 1.5


def test_images_show_two_circles_and_dashes(made, drawn):
    images = np.stack(made.splits["train"].documents)
    assert images.dtype == np.uint8
    assert images.shape == (500, SIZE * SIZE)
    assert (images == 255).any(1).all()
    assert 0.4 < np.mean(made.splits["train"].labels) < 0.6
    dashes, _, spots = drawn
    seen = pathfinder.render(dashes, spots)
    for image, circles in zip(seen, spots, strict=True):
        for y, x in np.rint(circles).astype(int):
            assert image[y, x] == 255
    nothing = np.full((1, 1, 2, 2), np.nan)
    assert (pathfinder.render(nothing, spots[:1]) > 0).sum() < 50


def test_images_depend_on_the_seed_alone(made):
    again = pathfinder.generate({"train": 540}, seed=1, processes=2).splits["train"]
    first = [x for split in made.splits.values() for x in split.documents]
    assert all((a == b).all() for a, b in zip(again.documents, first, strict=True))
    assert again.labels == [y for split in made.splits.values() for y in split.labels]


@pytest.fixture
def original(tmp_path):
    """Ten images as the original renderer leaves them; one file is empty, as in the release."""
    folder = tmp_path / "pathfinder32" / pathfinder_files.FOLDER
    (folder / "metadata").mkdir(parents=True)
    rng = default_rng(0)
    for i, count in ((2, 5), (10, 6)):
        (folder / "imgs" / str(i)).mkdir(parents=True)
        lines = []
        for k in range(count):
            pixels = rng.integers(256, size=(SIZE, SIZE), dtype=np.uint8)
            pixels[0, 0] = 20 * i + k
            Image.fromarray(pixels).save(folder / "imgs" / str(i) / f"sample_{k}.png")
            lines.append(f"imgs/{i} sample_{k}.png {k} {k % 2} 1.0 14 4 2 0.5 1 1\n")
        (folder / "metadata" / f"{i}.npy").write_text("".join(lines))
    (folder / "imgs" / "10" / "sample_5.png").write_bytes(b"")
    return tmp_path


def test_read_reads_the_original_folders(original):
    found = pathfinder_files.read(pathfinder_files.source(original))
    assert [len(split.labels) for split in found.splits.values()] == [8, 1, 1]
    documents = [x for split in found.splits.values() for x in split.documents]
    assert [int(x[0]) for x in documents] == [40, 41, 42, 43, 44, 200, 201, 202, 203, 204]
    assert found.splits["train"].labels == [0, 1, 0, 1, 0, 0, 1, 0]
    assert found.notes == ["1 of 11 image files are empty and were left out."]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda image, metadata: image.unlink(), "line 2 names .*sample_1.png, which is missing"),
        (
            lambda image, metadata: image.write_bytes(image.read_bytes()[:300]),
            "sample_1.png must be a whole image of 32 x 32 pixels, got",
        ),
        (
            lambda image, metadata: Image.new("L", (64, 64)).save(image),
            r"sample_1.png must be a whole image of 32 x 32 pixels, got \(64, 64\)",
        ),
        (
            lambda image, metadata: metadata.write_text("imgs/2 sample_1.png 1 2\n"),
            "line 1 must be folder, file, number and a label 0 or 1",
        ),
        *(
            (
                lambda image, metadata, x=x: metadata.write_text(f"{x} 1 1\n"),
                "line 1 names .*, which is outside the folder",
            )
            for x in ("../.. secret.png", "imgs/2/../../.. a.png", "/etc a.png", "imgs /etc/a.png")
        ),
        (
            lambda image, metadata: metadata.write_text("imgs/2 sample_1.png 1 1"),
            "2.npy must end in a whole line, but is cut short",
        ),
    ],
)
def test_read_refuses_damaged_folders(original, damage, message):
    folder = original / "pathfinder32" / pathfinder_files.FOLDER
    damage(folder / "imgs" / "2" / "sample_1.png", folder / "metadata" / "2.npy")
    with pytest.raises(ValueError, match=message):
        pathfinder_files.read(pathfinder_files.source(original))


def test_source_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"must hold curv_contour_length_14/metadata/\*.npy"):
        pathfinder_files.source(tmp_path)
