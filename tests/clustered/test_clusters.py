import pytest
import torch

from nystromer.clustered.clusters import bisected, clusters_of


@pytest.mark.parametrize("length", [1, 2, 31, 64, 100, 513, 2000])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 3000])
def test_bisected_gives_equal_clusters_of_all_tokens(length, count):
    clusters = bisected(torch.randn(3, length, 4), count)
    assert clusters.count == 1 << (min(length, count).bit_length() - 1)
    assert set(clusters.sizes) <= {clusters.size, clusters.size - 1}
    tokens = torch.arange(length).expand(3, -1)
    assert torch.equal(clusters.order.gather(1, clusters.places), tokens)
    by_cluster = clusters.order.view(3, clusters.count, clusters.size)
    assert torch.equal((by_cluster < length).sum(2)[0], torch.tensor(clusters.sizes))
    assert (by_cluster[..., :-1] < length).all(), "the places without a token come last"
    assert clusters_of(clusters.places, count).order.equal(clusters.order)


@pytest.mark.parametrize("length", [64, 4096])
def test_bisected_finds_groups_of_tokens(length):
    """Eight far groups in any order, of which no cluster holds two, with few tokens and many."""
    group = torch.randperm(length) % 8
    x = 100 * group[:, None] * torch.randn(2, 1, 16) + torch.randn(2, length, 16)
    found = group[bisected(x, 8).order].view(2, 8, -1)
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e10, 1e30])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("length", [250, 1000])
def test_bisected_keeps_every_token_whatever_it_holds(value, everywhere, length):
    x = torch.randn(2, length, 8)
    x[0] *= value if everywhere else 1
    x[0, 3, 2] = value
    order = bisected(x, 16).order.sort(1).values
    assert torch.equal(order[:, :length], torch.arange(length).expand(2, -1))
    assert torch.equal(order[1], bisected(x[1:], 16).order.sort(1).values[0])


@pytest.mark.parametrize("exponent", [-40, 13, 50])
def test_bisected_does_not_depend_on_scale(exponent):
    x = torch.randn(2, 500, 8)
    assert torch.equal(bisected(2.0**exponent * x, 16).order, bisected(x, 16).order)


def test_bisected_takes_tokens_all_alike():
    order = bisected(torch.ones(1, 100, 4), 8).order
    assert torch.equal(order.sort(1).values[0, :100], torch.arange(100))
