import pytest
import torch

from nystromer.recipes.runs.trainer import batch_sizes, updates
from small_run import small_trainer


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((32, None, 2), "must divide the number of processes, 3, got 2; start with torchrun"),
        ((32, 4, 3), "must be 1 with --sequence-parallel 3"),
        ((32, None, 0), "`sequence_parallel` must be at least 1, got 0"),
    ],
)
def test_sequences_that_cannot_be_shared_out_are_refused(monkeypatch, options, message):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=message):
        batch_sizes(*options)


def test_processes_of_a_sequence_count_as_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    sizes = batch_sizes(32, None, 2)
    assert sizes["per_device_train_batch_size"] == 1
    assert sizes["gradient_accumulation_steps"] == 16
    assert [updates(count, sizes, 2) for count in (1, 32, 33)] == [1, 1, 2]


def test_token_dropout_masks_a_share_and_no_special_token(tmp_path):
    trainer = small_trainer(tmp_path, token_dropout=0.25)
    ids = torch.full((4, 500), 97)
    ids[:, 0], ids[:, 400:] = 257, 256
    found = trainer.with_dropout(ids)
    assert torch.equal(found[:, 0], ids[:, 0])
    assert torch.equal(found[:, 400:], ids[:, 400:])
    assert set(found[:, 1:400].unique().tolist()) == {97, 259}
    assert 0.2 < found[:, 1:400].eq(259).double().mean() < 0.3


def test_token_dropout_is_for_training_alone(tmp_path):
    trainer = small_trainer(tmp_path, token_dropout=0.9, max_steps=1, save_strategy="no")
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["input_ids"].eq(259).any().item()),
        with_kwargs=True,
    )
    trainer.train()
    trainer.evaluate()
    assert seen[0]
    assert not any(seen[1:])
