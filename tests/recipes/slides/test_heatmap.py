"""nystromer mil heatmap: its files, the slide beneath, and what is refused."""

import csv
import json
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from nystromer import cli
from nystromer.mil import load_transmil, slides
from nystromer.mil.features.folders import find_bags
from nystromer.mil.maps import explain, for_class
from nystromer.mil.maps.places import places_of
from nystromer.mil.models import TransMIL
from nystromer.recipes.slides.heatmap import heatmap

SIDE, COLUMNS, PATCHES, WIDTH = 64, 6, 27, 8


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    options = {"embed_dim": 16, "num_heads": 2, "num_landmarks": 8}
    model = TransMIL(WIDTH, 2, mode="legacy", **options).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def features(tmp_path):
    (tmp_path / "h5_files").mkdir()
    return write_bag(tmp_path / "h5_files/slide_1.h5")


def write_bag(path, scale=SIDE, **attributes):
    n = np.arange(PATCHES)
    coords = np.stack([n % COLUMNS, n // COLUMNS], 1) * scale + 10
    name = "feats" if attributes else "features"
    with h5py.File(path, "w") as file:
        x = np.random.default_rng(0).normal(size=(PATCHES, WIDTH))
        file[name] = x.astype(np.float32)
        file["coords"] = coords.astype(np.float32 if attributes else np.int32)
        file.attrs.update(attributes)
    return path


class Handle:
    """What openslide gives: a white slide with one red patch."""

    dimensions, level_downsamples, properties = (700, 500), (1.0,), {}

    def __init__(self, path):
        self.image = Image.new("RGB", self.dimensions, "white")
        self.image.paste("red", (10, 10, 10 + SIDE, 10 + SIDE))

    def get_thumbnail(self, size):
        return self.image

    def get_best_level_for_downsample(self, downsample):
        return 0

    def read_region(self, corner, level, size):
        return self.image.crop((*corner, corner[0] + size[0], corner[1] + size[1]))


@pytest.fixture
def slide(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_library", lambda: type("library", (), {"OpenSlide": Handle}))
    (tmp_path / "slide_1.svs").write_bytes(b"")
    return tmp_path / "slide_1.svs"


def test_heatmap_writes_every_file(run, features, slide, tmp_path):
    output = tmp_path / "maps"
    assert heatmap(run, features, output, slide=slide, class_name="1") == 1
    names = ["slide_1.csv", "slide_1.geojson", "slide_1.h5", "slide_1.png", "slide_1_patches.png"]
    assert sorted(x.name for x in output.iterdir()) == names

    bag = find_bags(features)[0]
    expected = explain(load_transmil(run), bag.features(), for_class(1)).numpy()
    with h5py.File(output / "slide_1.h5") as file:
        np.testing.assert_allclose(file["attention_scores"][:, 0], expected)
        np.testing.assert_array_equal(file["coords"], bag.coords())
        assert file["coords"].attrs["patch_size"] == SIDE
        assert file.attrs["explained"] == "1"
    with open(output / "slide_1.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-6)
    assert float(rows[int(expected.argmax())]["rank"]) == 1.0
    tiles = json.loads((output / "slide_1.geojson").read_text())["features"]
    assert len(tiles) == PATCHES
    assert tiles[7]["geometry"]["coordinates"][0][:2] == [[74.0, 74.0], [138.0, 74.0]]
    assert tiles[7]["properties"]["measurements"]["single 1"] == pytest.approx(
        float(expected[7]), rel=1e-5
    )
    red = np.asarray(Image.open(output / "slide_1.png").convert("RGB")).astype(int)
    assert ((red[..., 0] > 240) & (red[..., 1:].max(2) < 15)).sum() > 500  # the slide is seen


def test_what_is_predicted_is_explained_and_an_empty_grid_will_do(run, features, tmp_path):
    heatmap(run, features, tmp_path / "maps", method="attention", layer=1, head=2)
    names = ["slide_1.csv", "slide_1.geojson", "slide_1.h5", "slide_1.png"]
    assert sorted(x.name for x in (tmp_path / "maps").iterdir()) == names
    bag = find_bags(features)[0]
    best = int(load_transmil(run)(bag.features()[None])[0].argmax())
    with h5py.File(tmp_path / "maps/slide_1.h5") as file:
        assert file.attrs["explained"] == str(best)


def test_a_bag_without_coordinates_has_a_table(run, tmp_path):
    torch.save(torch.randn(9, WIDTH), tmp_path / "bag.pt")
    said = []
    heatmap(run, tmp_path / "bag.pt", tmp_path / "maps", say=said.append)
    assert sorted(x.name for x in (tmp_path / "maps").iterdir()) == ["bag.csv", "bag.h5"]
    assert said == ["bag: no coordinates, so no picture and no GeoJSON."]


def test_micrometres_become_pixels_by_mpp(run, slide, tmp_path):
    facts = {"unit": "um", "tile_size_um": 32.0, "tile_size_px": 224}
    path = write_bag(tmp_path / "slide_1.h5", 32, **facts)
    with pytest.raises(ValueError, match=r"slide_1 are µm, and .*; name it by --mpp"):
        heatmap(run, path, tmp_path / "maps", slide=slide)
    heatmap(run, path, tmp_path / "maps", slide=slide, mpp=0.5)
    tile = json.loads((tmp_path / "maps/slide_1.geojson").read_text())["features"][1]
    assert tile["geometry"]["coordinates"][0][:2] == [[84.0, 20.0], [148.0, 20.0]]
    assert places_of(find_bags(path)[0]).in_pixels is False


def test_rasters_have_gaps_where_no_patch_is(features):
    places = places_of(find_bags(features)[0])
    image = places.raster(np.arange(PATCHES))
    assert image.shape == (5, COLUMNS)
    assert image[1, 2] == 8
    assert np.isnan(image[4, 3:]).all()
    assert places.extent == (10, 10 + 6 * SIDE, 10 + 5 * SIDE, 10)


def test_bad_input_is_one_sentence(run, features, slide, tmp_path, capsys, monkeypatch):
    def refused(*words):
        monkeypatch.setattr(sys, "argv", ["nystromer", "mil", "heatmap", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert len(said.splitlines()) == 1
        return said

    output = ("--output", tmp_path / "maps")
    ask = (run, features, *output)
    assert "must lie in 1 ... 2 for this model, got 3" in refused(
        *ask, "--method", "attention", "--layer", 3
    )
    assert "must lie in 1 ... 2 for this model, got 9" in refused(
        *ask, "--method", "rollout", "--head", 9
    )
    assert "`--class` must be one of 0, 1, got 'tumor'" in refused(*ask, "--class", "tumor")
    assert "`--method` must be one of single" in refused(*ask, "--method", "lrp")
    assert "There is no slide" in refused(*ask, "--slide", tmp_path / "none.svs")
    assert "`--mpp` must be above 0, got -1" in refused(*ask, "--slide", slide, "--mpp", -1)
    monkeypatch.setattr(Handle, "dimensions", (100, 100))
    said = refused(*ask, "--slide", slide)
    assert "reach from 10, 10 to 394, 330, and" in said
    assert "has 100 x 100 pixels; name the slide that they were cut from" in said
    with h5py.File(features, "a") as file:
        del file["coords"]
        file["coords"] = np.zeros((PATCHES - 1, 2), np.int32)
    assert "must have one x and y for each of the 27 patches" in refused(*ask)
    assert not (tmp_path / "maps").exists()


def test_several_bags_need_a_folder_of_slides(run, features, slide, tmp_path):
    write_bag(features.with_name("slide_2.h5"))
    with pytest.raises(ValueError, match=r"`--slide` must be a folder of slides for 2 bags"):
        heatmap(run, features.parent, tmp_path / "maps", slide=slide)
    with pytest.raises(ValueError, match="has no slide called slide_2"):
        heatmap(run, features.parent, tmp_path / "maps", slide=slide.parent)
    slide.with_name("slide_2.svs").write_bytes(b"")
    assert heatmap(run, features.parent, tmp_path / "maps", slide=slide.parent) == 2


def test_a_broken_slide_is_one_sentence(tmp_path):
    pytest.importorskip("openslide")
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    with pytest.raises(ValueError, match=r"broken.svs cannot be read as a slide: "):
        slides.open_slide(tmp_path / "broken.svs")


def test_slides_need_a_library(monkeypatch):
    for name in ("openslide", "tiffslide"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"need openslide: pip install nystromer\[slides\]"):
        slides._library()
