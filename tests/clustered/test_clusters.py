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
    x = 1000 * torch.randn(2, 8, 16)[:, group] + torch.randn(2, length, 16)
    found = group[bisected(x, 8).order].view(2, 8, -1)
    assert (found == found[..., :1]).all()


def test_bisected_takes_tokens_all_alike():
    order = bisected(torch.ones(1, 100, 4), 8).order
    assert torch.equal(order.sort(1).values[0, :100], torch.arange(100))
