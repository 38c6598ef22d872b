import pytest
import torch
from torch.nn import functional as F

from benchmarks.clustered import rivals
from benchmarks.clustered.training_free import farthest, fast_nystrom, muse
from nystromer import nystrom_attention


def tokens(length=64, dim=6, batch=2, heads=3):
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, batch, heads, length, dim, generator=g, dtype=torch.float64)


def test_muse_is_its_map():
    q, k, v = tokens()
    output = muse(q, k, v, None, 0.7, groups=8, slots=4)
    for b in range(2):
        weights = rivals.multipole(0.7 * q[b], k[b], groups=8, slots=4)
        torch.testing.assert_close(output[b], weights @ v[b], rtol=1e-9, atol=1e-9)


def test_muse_that_reads_every_key_is_exact():
    q, k, v = tokens()
    output = muse(q, k, v, None, 0.7, groups=8, slots=4, exact_keys=64)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, k, v, scale=0.7))


def test_muse_with_exact_keys_is_closer_than_without():
    q, k, v = tokens(256)
    exact = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    errors = [
        (muse(q, k, v, None, 1.0, groups=16, slots=16, exact_keys=n) - exact).norm()
        for n in (0, 1, 64)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_muse_refuses_clusters_of_two_sizes():
    q, k, v = tokens(50)
    with pytest.raises(ValueError, match="of one size, got 50 in 4"):
        muse(q, k, v, None, 1.0, groups=4, slots=4)


def test_farthest_takes_the_first_token_then_the_outliers():
    x = torch.zeros(2, 10, 3)
    x[0, 7], x[0, 4], x[1, 2] = 5, -3, 1
    assert farthest(x, 3)[0].tolist() == [0, 7, 4]
    assert farthest(x, 2)[1].tolist() == [0, 2]


def test_fast_nystrom_takes_queries_and_keys_of_the_tokens_whose_keys_are_farthest():
    q, k, v = tokens()
    output = fast_nystrom(q, k, v, None, 0.4, m=8)
    for b in range(2):
        joined = torch.cat([k[b, h] for h in range(3)], 1)
        chosen = farthest(joined[None], 8)[0]
        pair = (q[b : b + 1, :, chosen], k[b : b + 1, :, chosen])
        alone = [x[b : b + 1] for x in (q, k, v)]
        expected = nystrom_attention(*alone, num_landmarks=8, landmarks=pair, scale=0.4)
        torch.testing.assert_close(output[b : b + 1], expected)
