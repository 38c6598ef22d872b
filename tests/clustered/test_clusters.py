import pytest
import torch

from nystromer.clustered.clusters import bisected


@pytest.mark.parametrize("length", [1, 2, 31, 64, 100, 513, 2000])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 3000])
def test_bisected_gives_equal_clusters_of_all_tokens(length, count):
    clusters = bisected(torch.randn(3, length, 4), count)
    assert torch.equal(clusters.order.sort(1).values, torch.arange(length).expand(3, -1))
    assert clusters.size == -(-length // count)
    sizes = clusters.sizes(torch.ones(()))[:, 0]
    assert sizes.tolist()[:-1] == [clusters.size] * (clusters.count - 1)
    assert sizes.sum() == length


def test_bisected_finds_groups_of_tokens():
    """Eight far groups in any order, of which no cluster holds two, with few tokens and many."""
    for length in (64, 4096):
        group = torch.randperm(length) % 8
        x = 100 * torch.randn(2, 8, 16)[:, group] + torch.randn(2, length, 16)
        order = bisected(x, 8).order
        found = group[order].reshape(2, 8, -1)
        assert (found == found[..., :1]).all()


def test_bisected_takes_tokens_all_alike():
    order = bisected(torch.ones(1, 100, 4), 8).order
    assert torch.equal(order.sort(1).values[0], torch.arange(100))
