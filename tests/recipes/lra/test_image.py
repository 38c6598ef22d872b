import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from nystromer.recipes.lra import image


def grey_files(folder, rows=40, **change):
    draw = np.random.default_rng(0)
    (folder / "cifar10_gray").mkdir()
    for split in ("train", "test"):
        x = draw.integers(256, size=(rows, 32, 32), dtype=np.uint8)
        arrays = {"x": x, "y": np.arange(rows) % 10, **change}
        np.savez(folder / "cifar10_gray" / f"{split}.npz", **arrays)
    return folder


def batch(labels, data=None):
    """As the original has it: Python 2 strings for keys, red, green and blue one after another."""
    colours = np.array([[200] * 1024 + [100] * 1024 + [50] * 1024] * len(labels), np.uint8)
    rows = {b"data": colours if data is None else data, b"labels": labels}
    return pickle.dumps(rows, protocol=2)


def python_batches(folder, **other):
    (folder / "cifar-10-batches-py").mkdir()
    for names in image.BATCHES.values():
        for name in names:
            content = other.get(name, batch(list(range(10)) * 2))
            (folder / "cifar-10-batches-py" / name).write_bytes(content)
    return folder


def test_grey_files_keep_pixels_and_classes(tmp_path):
    found = image.read(image.source(grey_files(tmp_path, 100))).splits
    assert [len(x.labels) for x in found.values()] == [90, 10, 100]
    assert sorted(found["validation"].labels) == list(range(10))
    with np.load(tmp_path / "cifar10_gray" / "test.npz") as file:
        assert (np.stack(found["test"].documents) == file["x"].reshape(100, 1024)).all()


def test_the_python_archive_becomes_grey(tmp_path):
    folder = python_batches(tmp_path)
    found = image.read(image.source(folder)).splits
    assert [len(x.labels) for x in found.values()] == [90, 10, 20]
    assert set(np.concatenate(found["test"].documents)) == {124}  # .299, .587, .114
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / image.ARCHIVE, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    again = image.read(image.source(packed)).splits
    assert again["train"].labels == found["train"].labels
    content = (packed / image.ARCHIVE).read_bytes()
    (packed / image.ARCHIVE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz must (be a whole|hold)"):
        image.read(image.source(packed))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


class Huge:
    def __reduce__(self):
        return np.ndarray, ((2**30,), "u1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({b"data": Evil()}), r"must be a batch .*, got .*mkdir, which is no array"),
        (batch([1, 2])[:900], "data_batch_2 must be a batch of CIFAR-10, got"),
        (pickle.dumps({b"data": 3}), "data_batch_2 must be a batch of CIFAR-10, got"),
        (batch([1, 12] * 10), "A label of train must be one of 0 ... 9, got 12"),
        (
            b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"few bytes",
            "data_batch_2 must be a batch of CIFAR-10, got",
        ),
        (
            pickle.dumps({b"data": Huge(), b"labels": [1]}, protocol=2),
            "data_batch_2 must be a batch .*, got .*bytes of pixels",
        ),
    ],
)
def test_the_python_archive_is_read_safely(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    files = image.source(python_batches(tmp_path, data_batch_2=content))
    with pytest.raises(ValueError, match=message):
        image.read(files)
    assert not (tmp_path / "made by a pickle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.arange(40)}, r"A label of train must be one of 0 ... 9, got 10"),
        ({"y": np.zeros(7)}, r"as many labels, got uint8 \[40, 1024\] and 7 labels"),
        (
            {"x": np.zeros((40, 28, 28), np.uint8)},
            r"bytes \[rows, 32, 32\].* got uint8 \[40, 784\]",
        ),
        ({"x": np.zeros((40, 32, 32))}, r"must be bytes .* got float64"),
    ],
)
def test_grey_files_are_checked(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        image.read(image.source(grey_files(tmp_path, **change)))


def test_a_grey_file_cut_short_is_refused(tmp_path):
    path = grey_files(tmp_path) / "cifar10_gray" / "train.npz"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"train.npz must be an npz file with x and y, got"):
        image.read(image.source(tmp_path))
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((1, 32, 32)))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"train.npz must be an npz file with x and y, got"):
        image.read(image.source(tmp_path))


def test_source_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"must hold cifar10_gray/train.npz and test.npz"):
        image.source(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="folder must hold data_batch_1"):
        image.read(image.source(tmp_path))


def test_a_grey_file_that_claims_to_be_huge_is_refused(tmp_path, monkeypatch):
    path = grey_files(tmp_path) / "cifar10_gray" / "train.npz"
    monkeypatch.setattr(image, "LARGEST", 10_000)
    with pytest.raises(ValueError, match=rf"{path.name} must be an npz .*, got more than a gigab"):
        image.read(image.source(tmp_path))
