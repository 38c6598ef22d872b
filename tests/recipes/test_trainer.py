import pytest

from nystromer.recipes.trainer import batch_sizes, updates


@pytest.mark.parametrize(
    ("processes", "device_batch", "found"),
    [("1", None, (32, 1)), ("1", 8, (8, 4)), ("4", None, (8, 1)), ("4", 2, (2, 4))],
)
def test_a_batch_is_shared_out(monkeypatch, processes, device_batch, found):
    monkeypatch.setenv("WORLD_SIZE", processes)
    sizes = batch_sizes(32, device_batch)
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    assert tuple(sizes[name] for name in names) == found
    assert [updates(count, sizes) for count in (1, 32, 33, 320)] == [1, 1, 2, 10]


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="must be a multiple of 3 processes × 10 rows, got 32"):
        batch_sizes(32)
