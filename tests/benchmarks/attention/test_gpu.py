import pytest
import torch

from benchmarks.attention import gpu
from benchmarks.attention.gpu_shapes import Shape, inputs

SHAPE = Shape(2, 2, 64, 8, 16, kernel=5)


@pytest.fixture
def on_cpu(monkeypatch):
    ours = gpu.ours
    monkeypatch.setattr(gpu, "ours", lambda *args, backend="blocked": ours(*args, backend=backend))


@pytest.mark.parametrize("masks", [None, "right", "holes"])
def test_what_is_right_agrees(on_cpu, masks):
    shape = Shape(2, 2, 64, 8, 16, kernel=5, masks=masks)
    assert gpu.agreed_error(shape, "float32", "cpu") < 1e-5


def test_what_is_wrong_or_fails_has_no_error_to_show(on_cpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "equations", lambda *args: 1.01 * gpu.ours(*args, backend="eager"))
    assert gpu.agreed_error(SHAPE, "float32", "cpu") is None
    assert capsys.readouterr().out.startswith("DISAGREES: B2 H2 N64 D8 M16 K5 float32")
    monkeypatch.setattr(gpu, "equations", lambda *args: 1 / 0)
    assert gpu.agreed_error(SHAPE, "float32", "cpu") is None
    assert capsys.readouterr().out.startswith("FAILS: ")


def test_plain_pytorch_computes_the_equations():
    tensors = inputs(SHAPE, "float32", "cpu")
    torch.testing.assert_close(gpu.written(SHAPE, *tensors), gpu.equations(SHAPE, *tensors))
