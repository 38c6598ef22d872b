"""The same bags in every format: the same features, coordinates and predictions."""

import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from nystromer.mil import find_bags
from nystromer.mil.features.bags import join
from nystromer.mil.features.containers import LISTERS
from nystromer.mil.features.folders import duplicates, scan
from nystromer.mil.features.formats import FORMATS
from nystromer.mil.ids import slide_id
from nystromer.mil.models import TransMIL


def test_every_format_gives_the_same_bags(written):
    bags = find_bags(written.root)
    assert [bag.id for bag in bags] == list(written.bags)
    for bag in bags:
        features, coords = written.bags[bag.id]
        assert (bag.num_patches, bag.width) == features.shape
        read = bag.features()
        assert read.dtype == bag.dtype
        assert bag.dtype == (torch.float16 if "stamp" in written.name else torch.float32)
        np.testing.assert_array_equal(read.float().numpy(), features)
        found = (bag.kind, bag.patch_size, bag.encoder, bag.magnification)
        assert found == (written.kind, written.side, written.encoder, written.magnification)
        if bag.read_coords is None:
            assert written.name in ("npy", "pt", "pt_of_old")
            assert bag.coords() is None
            continue
        assert bag.unit == written.unit
        places = bag.coords().numpy()
        factor = 256 if written.name == "histossl" else 1
        np.testing.assert_allclose(places * factor, coords)


def test_every_format_gives_the_same_predictions(written):
    torch.manual_seed(3)
    model = TransMIL(6, 2, embed_dim=16, num_heads=2, conv_kernel_size=3).eval()
    for bag in find_bags(written.root):
        expected = model(torch.from_numpy(written.bags[bag.id][0])[None])
        assert torch.equal(model(bag.features()[None]), expected)


def test_one_file_is_a_folder_of_one(written):
    bag = find_bags(written.root)[0]
    assert find_bags(bag.path)[0].id == "s1"


def test_bags_go_to_other_processes(written):
    for bag in find_bags(written.root):
        assert torch.equal(pickle.loads(pickle.dumps(bag)).features(), bag.features())


def test_headers_are_read_and_features_are_not(write, monkeypatch):
    for name in ("clam", "stamp", "npz", "safetensors", "npy"):
        folder = write(name, name).root
        with monkeypatch.context() as patch:
            patch.setattr(
                "nystromer.mil.features.arrays.Array.read", lambda *_: pytest.fail("read")
            )
            assert len(find_bags(folder)) == 3


def test_suffixes_with_a_format_can_be_listed():
    assert FORMATS.keys() == LISTERS.keys()


def test_clam_needs_only_one_of_its_two_folders(write, tmp_path):
    clam = write("clam")
    assert len(find_bags(clam.root / "h5_files")) == 3
    bags = find_bags(clam.root / "pt_files")
    assert {bag.kind for bag in bags} == {"CLAM"}
    np.testing.assert_array_equal(bags[0].coords().numpy(), clam.bags["s1"][1])
    assert bags[0].patch_size == 256


def test_trident_may_say_nothing(h5, tmp_path):
    facts = {"name": "", "encoder": ""}
    h5(tmp_path / "features_conch/a.h5", features=(np.ones((4, 3), np.float32), facts))
    h5(tmp_path / "other/b.h5", features=(np.ones((4, 3), np.float32), facts))
    h5(tmp_path / "slide_features_titan/a.h5", features=np.ones(3, np.float32))
    bags = find_bags(tmp_path)
    assert [(bag.kind, bag.encoder) for bag in bags] == [("TRIDENT", "conch"), ("TRIDENT", None)]
    assert bags[0].coords() is None


def test_trident_may_have_coordinates_twice(write, h5):
    trident = write("trident")
    features, coords = trident.bags["s1"]
    path = find_bags(trident.root)[0].path
    h5(path, features=(features, {"encoder": b"uni"}), coords=coords)
    bag = find_bags(trident.root)[0]
    assert (bag.encoder, bag.patch_size, bag.magnification) == ("uni", 512, 20)
    np.testing.assert_array_equal(bag.coords().numpy(), coords)


def test_slideflow_says_magnification_in_words(write):
    bags = write("slideflow")
    config = bags.root / "bags_config.json"
    config.write_text(config.read_text().replace('"tile_um": 256', '"tile_um": "20x"'))
    assert find_bags(bags.root)[0].magnification == 20
    config.write_text("{")
    assert find_bags(bags.root)[0].encoder is None


def test_patients_bags_hold_the_patches_of_all_slides(write):
    slides = find_bags(write("stamp").root)
    bag = join("p", slides)
    assert (bag.id, bag.num_patches, bag.coords()) == ("p", 48, None)
    assert torch.equal(bag.features(), torch.cat([x.features() for x in slides]))
    assert join("p", slides[:1]).coords().shape == (40, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slides/a.b.svs", "a.b"), ("a.SVS", "a"), ("a.svs.h5", "a"), ("x\\a.h5 ", "a"),
        ("TCGA-1.8f3c.h5", "TCGA-1.8f3c"), (".h5", ".h5"), ("a.tif/", "a"), ("a", "a"),
    ],
)  # fmt: skip
def test_slide_id_is_the_name_without_folder_and_suffix(name, expected):
    assert slide_id(name) == expected


def one_sentence(path, message):
    with pytest.raises(ValueError, match=message) as stop:
        find_bags(path)[0].features()
    assert len(str(stop.value).splitlines()) == 1


def test_broken_files_are_one_sentence(written):
    path = find_bags(written.root)[0].path
    whole = path.read_bytes()
    if written.name == "table":
        path.write_text("bag,f0\na,1\nb,1,2,3,4\n")
        return one_sentence(path, r"bags.csv cannot be read as a table: .*")
    path.write_bytes(whole[: len(whole) * 2 // 3])
    one_sentence(path, r"cannot be read|is damaged or holds Python objects")
    path.write_bytes(b"")
    return one_sentence(path, r"cannot be read|is damaged or holds Python objects")


def test_damage_that_only_reading_finds_is_one_sentence(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = np.random.default_rng(0).random((500, 64))
        file.create_dataset("features", data=data, compression="gzip", chunks=(50, 64))
    path = tmp_path / "a.h5"
    damaged = bytearray(path.read_bytes())
    damaged[20_000:180_000] = bytes(160_000)
    path.write_bytes(damaged)
    one_sentence(tmp_path, r"a.h5 cannot be read")


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_objects_are_not_opened(tmp_path):
    (tmp_path / "a").mkdir()
    torch.save({"features": torch.ones(3, 2), "f": Code(tmp_path / "ran")}, tmp_path / "a/a.pt")
    one_sentence(tmp_path / "a", "holds Python objects, which could run code, and is not opened")
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b/b.npy", np.array([Code(tmp_path / "ran")], object))
    one_sentence(tmp_path / "b", r"b.npy cannot be read")
    (tmp_path / "c").mkdir()
    np.savez(tmp_path / "c/c.npz", features=np.array([Code(tmp_path / "ran")], object))
    one_sentence(tmp_path / "c", r"has no features")
    assert not (tmp_path / "ran").exists()


def test_features_must_be_finite(tmp_path):
    array = np.ones((5, 3), np.float32)
    array[2, 1], array[4, 0] = np.nan, np.inf
    np.save(tmp_path / "a.npy", array)
    one_sentence(tmp_path, r"The features of a .* hold NaN or infinity in 2 of 5 patches")


def test_coordinates_must_belong_to_the_features(h5, tmp_path):
    h5(tmp_path / "a.h5", features=np.ones((5, 3)), coords=np.ones((4, 2)))
    one_sentence(tmp_path, r"one x and y for each of the 5 patches .* got .* shape \[4, 2\]")


def test_features_of_another_shape_are_not_passed_over(h5, tmp_path):
    h5(tmp_path / "a.h5", features=np.ones((1, 5, 3)))
    one_sentence(tmp_path, r"a.h5 must hold features \[N, D\], got \[1, 5, 3\]; write one row")


@pytest.mark.parametrize(
    ("name", "library", "message"),
    [
        ("stamp", "h5py", "HDF5 files need h5py"),
        ("safetensors", "safetensors", "safetensors files need safetensors"),
        ("table", "pandas", "Tables need pandas"),
    ],
)
def test_a_missing_library_is_named(write, monkeypatch, name, library, message):
    folder = write(name).root
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{message}: pip install nystromer\[mil\]"):
        find_bags(folder)


def test_a_folder_without_bags_is_one_sentence(tmp_path):
    one_sentence(tmp_path / "none", "There is no .*none; name a folder")
    (tmp_path / "labels.csv").write_text("slide_id,label,age\na,1,60\nb,0,70\n")
    (tmp_path / "._a.h5").write_text("macOS")
    np.save(tmp_path / "vector.npy", np.ones(3))
    one_sentence(tmp_path, "has no features; what is read: .h5, ")
    (tmp_path / "words.csv").write_text("bag,f\na,x\n")
    one_sentence(tmp_path / "words.csv", "has no columns of features, only bag, f")
    (tmp_path / "empty.csv").write_text("bag,f\n")
    one_sentence(tmp_path / "empty.csv", "has no rows")
    (tmp_path / "nameless.csv").write_text("f,g\n1,2\n")
    one_sentence(tmp_path / "nameless.csv", "has no column for a bag's name; it has f, g")


def test_names_of_a_table_stay_as_they_are_written(tmp_path):
    (tmp_path / "bags.csv").write_text("Bag,f\n007,1\n007,2\n1e3,3\n")
    assert [bag.id for bag in find_bags(tmp_path)] == ["007", "1e3"]


def test_scan_goes_on_after_a_broken_file(write):
    root = write("stamp").root
    (root / "s2.h5").write_text("no")
    found = list(scan(root))
    assert [isinstance(x, ValueError) for x in found] == [False, True, False]


def test_duplicates_are_named(write):
    write("stamp", "one/"), write("npy", "one/two")
    bags = find_bags(write("pt", "one/three").root.parent)
    assert duplicates(bags) == ["s1", "s2", "s3"]
