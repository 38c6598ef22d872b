import pytest
import torch

from benchmarks.clustered import rivals
from nystromer import clustered_attention

EVERYONE = {
    "clustered": (rivals.clustered, {"groups": 4, "slots": 4, "exact_keys": 5}),
    "improved": (rivals.improved_clustered, {"groups": 4, "exact_keys": 5}),
    "multipole": (rivals.multipole, {"groups": 4, "slots": 4}),
    "dipole": (rivals.multipole, {"groups": 4, "slots": 4, "dipole": True}),
    "blocks": (rivals.blocks, {"groups": 4, "slots": 4, "exact_keys": 10}),
}
everyone = pytest.mark.parametrize("name", list(EVERYONE))


def tokens(length=40, dim=6):
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, length, dim, generator=g, dtype=torch.float64)


@everyone
def test_rows_of_a_map_sum_to_one(name):
    q, k = tokens()
    make, counts = EVERYONE[name]
    weights = make(q, k, **counts)
    assert weights.shape == (3, 40, 40)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 40, dtype=torch.float64))


@everyone
def test_map_is_exact_where_queries_and_keys_of_a_cluster_are_equal(name):
    q, k = (x[:, torch.arange(40) // 10] for x in tokens())  # four clusters of ten equal tokens
    make, counts = EVERYONE[name]
    torch.testing.assert_close(make(q, k, **counts), (q @ k.mT).softmax(-1))


def test_clustered_is_the_map_of_clustered_attention():
    q, k = tokens()
    counts = {"num_query_clusters": 4, "num_key_clusters": 4, "num_exact_keys": 5}
    v = torch.eye(40, dtype=torch.float64).expand(1, 3, 40, 40)
    output = clustered_attention(q[None], k[None], v, **counts, scale=1.0)[0]
    torch.testing.assert_close(rivals.clustered(q, k, 4, 4, 5), output)


def test_improved_clustered_shares_the_mass_of_the_first_keys():
    """Query by query: Vyas et al. 2020, section 3.3."""
    q, k = tokens(12)
    queries = rivals.lloyd(q, 3)
    weights = rivals.improved_clustered(q, k, groups=3, exact_keys=4)
    for h in range(3):
        for i in range(12):
            row = (queries.means[h, queries.ids[h, i]] @ k[h].T).softmax(0)
            first = row.topk(4).indices
            expected = row.clone()
            expected[first] = row[first].sum() * (q[h, i] @ k[h, first].T).softmax(0)
            torch.testing.assert_close(weights[h, i], expected)


def test_multipole_tilts_the_key_clusters():
    q, k = tokens(12)
    queries, keys = rivals.balanced(q, 3), rivals.balanced(k, 2)
    weights = rivals.multipole(q, k, groups=3, slots=2)
    dipole = rivals.multipole(q, k, groups=3, slots=2, dipole=True)
    near = queries.near[0, 5]
    logits, first_order = torch.zeros(2, 12, dtype=torch.float64)
    for j in range(2):
        members = (keys.ids[0] == j).nonzero()[:, 0]
        tilted = (k[0, members] @ near).softmax(0) @ k[0, members]
        logits[members] = k[0, members] @ near + (q[0, 5] - near) @ tilted
        first_order[members] = 1 + (k[0, members] - tilted) @ (q[0, 5] - near)
    torch.testing.assert_close(weights[0, 5], logits.softmax(0))
    torch.testing.assert_close(dipole[0, 5], logits.softmax(0) * first_order)


def test_blocks_of_all_clusters_are_exact():
    q, k = tokens()
    weights = rivals.blocks(q, k, groups=4, slots=4, exact_keys=40)
    torch.testing.assert_close(weights, (q @ k.mT).softmax(-1))
