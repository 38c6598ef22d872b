import pytest
import torch
from torch.nn import functional as F

from cases import assert_close
from nystromer.hf import LayerChoice
from nystromer.hf.conversion.attend import approximate, attend

M, N = 4, 40
CLUSTERS = {"num_query_clusters": 2, "num_key_clusters": 2, "num_exact_keys": 4}
CHOICES = {
    "nystrom": LayerChoice("a", num_landmarks=M, exact_heads=(2, 0), conv_kernel_size=3),
    "clustered": LayerChoice("a", "clustered", **CLUSTERS, exact_heads=(2, 0)),
}


def qkv(n=N, heads=4, dim=8):
    return torch.randn(3, 2, heads, n, dim)


@pytest.mark.parametrize("attention", CHOICES)
def test_exact_heads_are_exact(attention):
    choice, (q, k, v) = CHOICES[attention], qkv()
    mask, taps = torch.arange(N) < torch.tensor([[N], [N - 5]]), torch.randn(4, 3)
    out = attend(choice, q, k, v, mask, None, taps)
    exact = F.scaled_dot_product_attention(q, k, v, mask[:, None, None])
    exact = exact * mask[:, None, :, None]
    assert_close(out[:, [0, 2]], exact[:, [0, 2]], 1e-6)
    near = approximate(choice, q, k, v, mask, None, taps)
    assert_close(out[:, [1, 3]], near[:, [1, 3]], 1e-6)
    assert (near - exact).abs().max() > 0.1


@pytest.mark.parametrize(
    "choice",
    [
        LayerChoice("a", num_landmarks=3, min_length=6),
        LayerChoice(
            "a",
            "clustered",
            min_length=6,
            num_query_clusters=2,
            num_key_clusters=2,
            num_exact_keys=3,
        ),
    ],
    ids=["nystrom", "clustered"],
)
def test_attend_gradients_reach_short_and_long_sequences(choice):
    """Clustered attention's take the clusters as constants, so the checker must not move them."""
    q, k, v = (x.double().requires_grad_() for x in qkv(n=12, heads=1, dim=2))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5:] = False
    real = mask[:, None, :, None]
    assert torch.autograd.gradcheck(
        lambda *x: attend(choice, *x, mask, None).masked_fill(~real, 0), (q, k, v), nondet_tol=1e-9
    )
