from pathlib import Path

import pytest

from nystromer.recipes.pretrain.corpus import Corpus
from nystromer.recipes.pretrain.settings import Settings, arguments_of, device_batch

CORPUS = Corpus((Path("a.txt"),))


def test_the_recipe_of_the_paper(tmp_path):
    arguments = arguments_of(Settings(CORPUS, preset="bert-base"), tmp_path)
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    assert (arguments.max_steps, arguments.warmup_steps) == (500_000, 10_000)
    assert (arguments.learning_rate, arguments.weight_decay, betas) == (1e-4, 0.01, (0.9, 0.999))
    assert arguments.lr_scheduler_type == "linear"
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert (arguments.per_device_train_batch_size, batch) == (16, 256)


def test_device_batch_divides_the_batch():
    assert device_batch(Settings(CORPUS), 1) == 16
    assert device_batch(Settings(CORPUS, sequence_length=4096), 4) == 2
    assert device_batch(Settings(CORPUS, sequence_length=9000), 1) == 1
    assert device_batch(Settings(CORPUS, batch_size=12, sequence_length=64), 2) == 6
    assert device_batch(Settings(CORPUS, batch_size=12, device_batch=3), 4) == 3


@pytest.mark.parametrize(
    ("batch", "each", "processes", "message"),
    [
        (10, 4, 1, r"multiple of .* 4 × 1, got 10; write 12\."),
        (8, 4, 4, r"multiple of .* 4 × 4, got 8; write 16\."),
        (9, None, 2, r"multiple of .* 4 × 2, got 9; write 16\."),
        (1, None, 2, r"multiple of .* 1 × 2, got 1; write 2\."),
    ],
)
def test_a_batch_that_cannot_be_divided(batch, each, processes, message):
    settings = Settings(CORPUS, batch_size=batch, device_batch=each)
    with pytest.raises(ValueError, match=message):
        device_batch(settings, processes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "`preset` must be one of tiny, bert-small, bert-base, got 'huge'"),
        ({"attention": "full"}, "`attention` must be one of nystrom, exact, got 'full'"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"device_batch": -1}, "`device_batch` must be at least 1, got -1"),
        ({"evaluations": 0}, "`evaluations` must be at least 1, got 0"),
        ({"held_out": 0.0}, "`held_out` must be between 0 and 1, got 0.0"),
        ({"sequence_length": 10}, "`sequence_length` must be at least 16, got 10"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0 and finite, got 0.0"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments_of(Settings(CORPUS, **options), tmp_path)
