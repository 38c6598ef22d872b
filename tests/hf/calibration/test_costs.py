import pytest

from nystromer.hf.calibration.costs import Clock, exact_share, keys, multiplications
from nystromer.hf.conversion.plan import LayerChoice

CLUSTERS = {"num_query_clusters": 2, "num_key_clusters": 3, "num_exact_keys": 5}
EXACT = LayerChoice("a", "exact", num_heads=2)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (EXACT, 100),
        (LayerChoice("a", num_landmarks=8), 16),
        (LayerChoice("a", num_landmarks=8, exact_heads=(1,), num_heads=4), 16 * 3 / 4 + 25),
        (LayerChoice("a", "clustered", **CLUSTERS), 10),
        (LayerChoice("a", num_landmarks=26), 100),  # 4 M = 104 tokens: exact
        (LayerChoice("a", num_landmarks=25), 50),
    ],
)
def test_keys_by_hand(choice, wanted):
    assert keys(choice, 100) == wanted


def test_exact_share_is_of_the_heads():
    nystrom = LayerChoice("a", exact_heads=(1,), num_heads=4)
    assert (exact_share(nystrom), exact_share(EXACT)) == (0.25, 1)


def test_multiplications_by_hand():
    n, d, m = 100, 8, 8
    full = n * n * 2 * d
    nystrom = 2 * n * m * 2 * d + m * m * 2 * d + 24 * m**3 + n * d * 3
    choice = LayerChoice("a", num_landmarks=8, num_heads=2, conv_kernel_size=3)
    assert multiplications(choice, n, d) == nystrom
    assert multiplications(choice, 31, d) == 31 * 31 * 2 * d  # below 4 M
    kmeans = LayerChoice("a", num_landmarks=8, num_heads=2, landmarks="kmeans", conv_kernel_size=3)
    assert multiplications(kmeans, n, d) == nystrom + 3 * n * m * 2 * d
    mixed = LayerChoice("a", num_landmarks=8, num_heads=2, conv_kernel_size=3, exact_heads=(1,))
    assert multiplications(mixed, n, d) == (full + nystrom) / 2
    assert multiplications(EXACT, n, d) == full
    clustered = LayerChoice("a", "clustered", **CLUSTERS)
    assert multiplications(clustered, n, d) == n * 10 * 2 * d + n * 5 * d


def test_clock_orders_what_differs_much():
    """Exact attention to 2,048 tokens is far slower than Nyström attention with 4 landmarks."""
    nystrom = LayerChoice("a", num_landmarks=4, num_heads=2, conv_kernel_size=3)
    by_head = LayerChoice(
        "b", num_landmarks=4, num_heads=2, exact_heads=(0,), conv_kernel_size=3,
        conv_taps=((0, 1, 2),) * 2,
    )  # fmt: skip
    clustered = LayerChoice("a", "clustered", num_heads=2, **CLUSTERS)
    clock = Clock([nystrom, by_head, clustered], 2048, 16)
    near, exact = clock(nystrom), clock(EXACT)
    assert 0 < near < exact
    assert clock(by_head) == pytest.approx((near + exact) / 2)
    assert clock(clustered) > 0
    assert len(clock.seconds) == 3
