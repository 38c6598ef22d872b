from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from nystromer import NystromAttention
from nystromer.recipes.demo.data import stdlib_task
from nystromer.recipes.demo.model import ExactAttention
from nystromer.recipes.demo.sample import shaded_source
from nystromer.recipes.demo.settings import Settings
from nystromer.recipes.demo.twins import train_twin, twin_models

TINY = Settings(
    length=128,
    num_packages=3,
    max_windows=8,
    batch_size=4,
    width=16,
    num_heads=2,
    head_dim=8,
    num_landmarks=16,
)


@pytest.fixture(scope="module")
def task():
    return stdlib_task(length=TINY.length, num_packages=3, max_windows=8)


def test_twin_models_start_with_the_same_weights():
    exact, nystrom = twin_models(3, TINY, seed=0).values()
    assert exact.state_dict().keys() == nystrom.state_dict().keys()
    for name, weight in exact.state_dict().items():
        assert torch.equal(weight, nystrom.state_dict()[name])


def test_twin_models_agree_with_as_many_landmarks_as_tokens():
    settings = dataclasses.replace(TINY, num_landmarks=TINY.length + 1)
    exact, nystrom = (model.eval() for model in twin_models(3, settings, seed=0).values())
    input_ids = torch.randint(256, (2, TINY.length))
    torch.testing.assert_close(exact(input_ids), nystrom(input_ids))
    torch.testing.assert_close(exact.class_token_row(input_ids), nystrom.class_token_row(input_ids))


def test_twin_models_differ_with_fewer_landmarks():
    exact, nystrom = (model.eval() for model in twin_models(3, TINY, seed=0).values())
    input_ids = torch.randint(256, (2, TINY.length))
    assert not torch.allclose(exact(input_ids)["logits"], nystrom(input_ids)["logits"])


def test_exact_attention_rows_are_those_of_its_output():
    torch.manual_seed(0)
    exact = ExactAttention(16, 2, conv_kernel_size=None)
    x = torch.randn(1, 40, 16)
    rows = exact.attention_rows(x, list(range(40)))  # [1, H, N, N]
    value = exact.v_proj(x).unflatten(2, (2, 8)).transpose(1, 2)
    expected = exact.out_proj((rows @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(exact(x), expected)
    assert isinstance(exact, NystromAttention)


def test_train_twin_sees_the_same_batches(task):
    seen = {}
    for name, model in twin_models(3, TINY, seed=0).items():
        batches = seen[name] = []

        def record(module, args, kwargs, model=model, batches=batches):
            if module is model and module.training:  # a copy was profiled before
                batches.append(kwargs["input_ids"])

        model.register_forward_pre_hook(record, with_kwargs=True)
        twin = train_twin(name, model, task, TINY, seed=0)
        labels = np.array([task.packages.index(window.package) for window in task.held_out])
        assert twin.accuracy == (twin.predictions == labels).mean()
        assert twin.history[-1] == (twin.seconds, twin.accuracy)
        assert twin.steps == 6
        assert 0 < twin.seconds_per_step < twin.seconds
    assert len(seen["exact"]) == 6
    assert all(map(torch.equal, seen["exact"], seen["nystrom"]))


def test_settings_refuse_no_epochs():
    with pytest.raises(ValueError, match=r"`epochs` must be at least 1, got 0"):
        Settings(epochs=0)


def test_shaded_source_shades_words_and_escapes():
    text = b"if a < b:\n"
    row = np.array([9.0, 9, 0, 0, 0, 0, 0, 0, 0, 0])
    assert shaded_source(text, row) == '<span class="a9">if</span> a &lt; b:\n'
