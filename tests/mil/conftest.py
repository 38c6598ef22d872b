"""The same bags in the files of every format."""

import json

import h5py
import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import save_file

SIZES = {"s1": 40, "s2": 7, "s3": 1}
WIDTH = 6


def make_bags():
    """Features that float16 holds exactly, and coordinates of a grid of patches of 256 pixels."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(-64, 64, (n, WIDTH)).astype(np.float32) / 16,
            np.stack([np.arange(n) % 6, np.arange(n) // 6], 1).astype(np.int64) * 256,
        )
        for name, n in SIZES.items()
    }


def write_h5(path, attributes=None, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            value, facts = value if isinstance(value, tuple) else (value, {})
            file.create_dataset(name, data=value).attrs.update(facts)
        file.attrs.update(attributes or {})


def clam(root, name, features, coords):
    write_h5(root / f"h5_files/{name}.h5", features=features, coords=coords.astype(np.int32))
    (root / "pt_files").mkdir(exist_ok=True)
    torch.save(torch.from_numpy(features), root / f"pt_files/{name}.pt")
    facts = {"patch_size": 128, "patch_level": 1, "downsample": (2.0, 2.0), "level_dim": (9, 9)}
    write_h5(root / f"patches/{name}.h5", coords=(coords.astype(np.int32), facts))


def trident(root, name, features, coords):
    facts = {"name": name, "encoder": "uni_v1"}
    root = root / "20x_256px_0px_overlap"
    write_h5(root / f"features_uni_v1/{name}.h5", features=(features, facts))
    facts = {
        "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "overlap": 0,
        "target_magnification": 20, "level0_width": 9999, "level0_height": 9999,
    }  # fmt: skip
    write_h5(root / f"patches/{name}_patches.h5", coords=(coords, facts))


def stamp(root, name, features, coords):
    facts = {
        "unit": "um", "tile_size_um": 256.0, "tile_size_px": 224,
        "extractor": "ctranspath", "stamp_version": "2.4.0",
    }  # fmt: skip
    arrays = {"feats": features.astype(np.float16), "coords": coords.astype(np.float32)}
    write_h5(root / f"{name}.h5", facts, **arrays)


def stamp_older(root, name, features, coords):
    facts = {"unit": "um", "tile_size": 256.0, "extractor": "ctranspath"}
    arrays = {"feats": features.astype(np.float16), "coords": coords.astype(np.float32)}
    write_h5(root / f"{name}.h5", facts, **arrays)


def stamp_oldest(root, name, features, coords):
    arrays = {"feats": features.astype(np.float16), "coords": coords // 256 * 224}
    write_h5(root / f"{name}.h5", **arrays)


def slideflow(root, name, features, coords):
    torch.save(torch.from_numpy(features), root / f"{name}.pt")
    np.savez(root / f"{name}.index.npz", coords)
    extractor = {"class": "slideflow.model.extractors.uni.UNIFeatures", "kwargs": {}}
    config = {"extractor": extractor, "tile_um": 256, "tile_px": 256}
    (root / "bags_config.json").write_text(json.dumps(config))


def histossl(root, name, features, coords):
    (root / f"{name}.tif").mkdir()
    places = np.concatenate([np.full((len(coords), 1), 15), coords // 256], 1)
    array = np.concatenate([places.astype(np.float32), features], 1)
    np.save(root / f"{name}.tif/features.npy", array)


def torchmil(root, name, features, coords):
    arrays = {
        "features/features_UNI": features,
        "coords": coords,
        "labels": np.array(1),
        "patch_labels": np.zeros((len(coords), 1)),
    }
    for folder, array in arrays.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        np.save(root / folder / f"{name}.npy", array)


def npy(root, name, features, coords):
    np.save(root / f"{name}.npy", features)


def npz(root, name, features, coords):
    np.savez_compressed(root / f"{name}.npz", features=features, coords=coords)


def pt(root, name, features, coords):
    torch.save(torch.from_numpy(features), root / f"{name}.pt")


def pt_of_old(root, name, features, coords):
    tensor = torch.from_numpy(features)
    torch.save(tensor, root / f"{name}.pt", _use_new_zipfile_serialization=False)


def safetensors(root, name, features, coords):
    tensors = {"features": torch.from_numpy(features), "coords": torch.from_numpy(coords)}
    save_file(tensors, root / f"{name}.safetensors")


def table(root, name, features, coords):
    path = root / "bags.csv"
    rows = pandas.DataFrame(features, columns=[f"f{i}" for i in range(WIDTH)])
    rows = rows.assign(bag=name, label=int(name[1]) % 2, x=coords[:, 0], y=coords[:, 1])
    before = [pandas.read_csv(path)] if path.exists() else []
    pandas.concat([*before, rows]).to_csv(path, index=False)


def parquet(root, name, features, coords):
    table(root, name, features, coords)
    pandas.read_csv(root / "bags.csv").to_parquet(root / "bags.parquet")
    if name == list(SIZES)[-1]:
        (root / "bags.csv").unlink()


PIXELS, MICROMETRES = "level-0 pixels", "µm"
FORMATS = {  # its writer; kind, unit, side of a patch, encoder, magnification
    "clam": (clam, "CLAM", PIXELS, 256, None, None),
    "trident": (trident, "TRIDENT", PIXELS, 512, "uni_v1", 20),
    "stamp": (stamp, "STAMP", MICROMETRES, 256, "ctranspath", 8.75),
    "stamp_older": (stamp_older, "STAMP", MICROMETRES, 256, "ctranspath", None),
    "stamp_oldest": (stamp_oldest, "STAMP", MICROMETRES, 256, None, 8.75),
    "slideflow": (slideflow, "slideflow", PIXELS, None, "UNIFeatures", 10),
    "histossl": (histossl, "HistoSSL", "tiles", 1, None, None),
    "torchmil": (torchmil, "torchmil", None, None, "UNI", None),
    "npy": (npy, "npy", None, None, None, None),
    "npz": (npz, "npz", None, None, None, None),
    "pt": (pt, "pt", None, None, None, None),
    "pt_of_old": (pt_of_old, "pt", None, None, None, None),
    "safetensors": (safetensors, "safetensors", None, None, None, None),
    "table": (table, "table", None, None, None, None),
    "parquet": (parquet, "table", None, None, None, None),
}


class Written:
    """A folder in one format, and what the bags in it should be."""

    def __init__(self, name, root, bags):
        self.name, self.root, self.bags = name, root, bags
        writer, self.kind, self.unit, self.side, self.encoder, self.magnification = FORMATS[name]
        for bag, arrays in bags.items():
            writer(root, bag, *arrays)


@pytest.fixture(params=FORMATS)
def written(request, tmp_path):
    return Written(request.param, tmp_path, make_bags())


@pytest.fixture
def write(tmp_path):
    """write("stamp", "folder", bags): the bags of another folder, in another format."""

    def write_bags(name, folder="features", bags=None):
        root = tmp_path / folder
        root.mkdir()
        return Written(name, root, make_bags() if bags is None else bags)

    return write_bags


@pytest.fixture
def h5():
    return write_h5
