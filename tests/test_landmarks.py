import pytest
import torch

import oracle
from nystromer.landmarks import (
    kmeans,
    sample_tokens,
    segment_ids,
    segment_means,
    segment_sizes,
    spread_over_run_,
)


@pytest.mark.parametrize(
    ("n", "m"), [(12, 4), (13, 4), (15, 4), (4, 4), (100, 64), (127, 64), (5, 1)]
)
def test_segment_means_equals_oracle(n, m):
    x = torch.randn(2, 3, n, 5, dtype=torch.float64)
    means, counts = segment_means(x, m)
    for b in range(2):
        for h in range(3):
            expected = torch.from_numpy(oracle.segment_means(x[b, h].numpy(), m))
            torch.testing.assert_close(means[b, h], expected)
    assert counts.tolist() == [segment_sizes(n, m)] * 2
    assert counts.sum(1).tolist() == [n, n]


def test_segment_means_puts_the_short_segments_first():
    assert segment_sizes(14, 4) == [3, 3, 4, 4]
    assert segment_sizes(2, 4) == [0, 0, 1, 1]


def test_segment_means_sees_real_tokens_only():
    x = torch.randn(2, 3, 20, 5, dtype=torch.float64)
    mask = torch.rand(2, 20) < 0.6
    x[~mask[:, None].expand(2, 3, 20)] = torch.nan
    means, counts = segment_means(x, 4, mask)
    for b in range(2):
        expected, sizes = segment_means(x[b : b + 1, :, mask[b]], 4)
        torch.testing.assert_close(means[b : b + 1], expected)
        assert counts[b].tolist() == sizes[0].tolist()


@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_segment_means_of_few_tokens_are_the_tokens(length):
    x, mask = torch.randn(1, 2, 9, 3), torch.arange(9)[None] < length
    means, counts = segment_means(x, 4, mask)
    assert counts.tolist() == [[0] * (4 - length) + [1] * length]
    assert torch.equal(means[:, :, 4 - length :], x[:, :, :length])
    assert means[:, :, : 4 - length].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_segment_means_accumulates_in_float32(dtype):
    x = torch.full((1, 1, 30_000, 2), 100.0, dtype=dtype)
    mask = torch.ones(1, 30_000, dtype=torch.bool)
    for means, counts in (segment_means(x, 1), segment_means(x, 1, mask)):
        assert means.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert counts.dtype == torch.int64
        assert means.tolist() == [[[[100.0, 100.0]]]]  # the sum alone overflows float16


@pytest.mark.parametrize("length", [3, 4, 15])
def test_spread_over_run_is_the_gradient_of_segment_means(length):
    x = torch.randn(2, 1, length, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 1, 4, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(segment_means(x, 4)[0], x, grad)
    got = torch.zeros_like(expected)
    spread_over_run_(got, grad)
    torch.testing.assert_close(got, expected)


def test_sample_tokens_draws_one_real_token_from_each_segment():
    x = torch.arange(40.0).view(1, 1, 40, 1)
    mask = torch.rand(1, 40) < 0.6
    tokens, counts = sample_tokens(x, 5, mask)
    positions = tokens.flatten().long()
    assert mask[0, positions].all()
    assert segment_ids(mask, 5)[0, positions].tolist() == [0, 1, 2, 3, 4]
    assert counts.tolist() == [[1] * 5]
    draws = {tuple(sample_tokens(x, 5, mask, seed=s)[0].flatten().tolist()) for s in range(8)}
    assert len(draws) > 1


def test_sample_tokens_ignores_padding_and_neighbours():
    x = torch.randn(1, 2, 30, 4)
    alone, _ = sample_tokens(x, 7)
    padded = torch.cat([torch.full((1, 2, 5, 4), torch.nan), x], 2)
    both = torch.cat([padded, torch.randn(1, 2, 35, 4)])
    mask = torch.ones(2, 35, dtype=torch.bool)
    mask[0, :5] = False
    assert torch.equal(sample_tokens(both, 7, mask)[0][:1], alone)


@pytest.mark.parametrize("scheme", [sample_tokens, kmeans])
@pytest.mark.parametrize("length", [0, 2, 4])
def test_other_schemes_return_few_tokens_as_they_are(scheme, length):
    x, mask = torch.randn(1, 2, 9, 3), torch.arange(9)[None] < length
    landmarks, counts = scheme(x, 4, mask)
    assert torch.equal(landmarks[:, :, 4 - length :], x[:, :, :length])
    assert int(counts.sum()) in (length, 2 * length)  # kmeans counts per head


def test_kmeans_finds_separate_clusters():
    centres = 50 * torch.randn(1, 2, 6, 8, dtype=torch.float64)
    labels = torch.arange(600) * 6 // 600  # contiguous, so that the start is already near
    x = centres[:, :, labels] + torch.randn(1, 2, 600, 8, dtype=torch.float64)
    shuffled = x[:, :, torch.cat([torch.arange(590), torch.arange(590, 600).flip(0)])]
    found, counts = kmeans(shuffled, 6)
    torch.testing.assert_close(found, x.unflatten(2, (6, 100)).mean(3))
    assert (counts == 100).all()


def test_kmeans_keeps_the_centre_of_an_empty_cluster():
    centres, counts = kmeans(torch.full((1, 1, 12, 2), 3.0), 4)
    assert counts.tolist() == [[[12, 0, 0, 0]]]  # equal distances go to the first
    assert (centres == 3).all()


def test_kmeans_lowers_the_quantisation_error_of_segment_means():
    x = torch.randn(2, 2, 500, 4, dtype=torch.float64)
    mask = torch.arange(500) < torch.tensor([[500], [333]])
    start, end = segment_means(x, 16, mask)[0], kmeans(x, 16, mask)[0]

    def error(landmarks):
        return torch.cdist(x, landmarks).amin(-1).square()[mask[:, None].expand(2, 2, 500)].mean()

    assert error(end) < 0.7 * error(start)


def test_kmeans_gradient_is_that_of_the_last_means():
    x = torch.randn(1, 1, 40, 3, dtype=torch.float64, requires_grad=True)
    landmarks, counts = kmeans(x, 4)
    (grad,) = torch.autograd.grad(landmarks.sum(), x)
    per_token = grad[0, 0, :, 0]
    assert set((1 / counts[0, 0].double()).tolist()) == set(per_token.tolist())


def test_schemes_errors():
    x = torch.randn(2, 4, 30, 8)
    for scheme in (segment_means, sample_tokens, kmeans):
        with pytest.raises(ValueError, match=r"`x` must be \[B, H, N, D\], got shape"):
            scheme(x[0], 4)
        with pytest.raises(ValueError, match="`num_landmarks` must be at least 1, got 0"):
            scheme(x, 0)
        with pytest.raises(ValueError, match="`mask` must be bool"):
            scheme(x, 4, torch.ones(2, 30))
    with pytest.raises(ValueError, match="`iterations` must be at least 1, got 0"):
        kmeans(x, 4, iterations=0)
