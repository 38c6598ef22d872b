import numpy as np
import pytest
import torch

import oracle
from nystromer.pinv import iterative_pinv, pinv_start
from nystromer.pinv_product import pinv_product, pinv_product_backward

INITS = ("matrix", "sequence", "batch")


def kernels(batch=2, heads=3, m=8, dtype=torch.float64):
    sharpness = torch.linspace(0.5, 4, batch * heads, dtype=dtype).view(batch, heads, 1, 1)
    return torch.softmax(sharpness * torch.randn(batch, heads, m, m, dtype=dtype), -1)


@pytest.mark.parametrize("steps", [1, 6])
def test_iterative_pinv_equals_oracle(steps):
    a = kernels()
    got = iterative_pinv(a, steps)
    for b, h in np.ndindex(2, 3):
        matrix = a[b, h].numpy()
        expected = oracle.pinv(matrix, steps, oracle.start_norm(matrix))
        torch.testing.assert_close(got[b, h], torch.from_numpy(expected))


def test_iterative_pinv_converges_to_the_pseudo_inverse():
    a = kernels()
    torch.testing.assert_close(iterative_pinv(a, 30), torch.linalg.pinv(a))


def test_pinv_start_takes_norms_over_matrix_sequence_or_batch():
    a = kernels()
    norm = {init: (a.mT / pinv_start(a, init)).flatten(2)[..., 0] for init in INITS}  # [B, H]
    column = a.sum(-2).amax(-1)
    torch.testing.assert_close(norm["matrix"], column)  # rows sum to one
    torch.testing.assert_close(norm["sequence"], column.amax(1, True).expand(2, 3))
    torch.testing.assert_close(norm["batch"], column.amax().expand(2, 3))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_pinv_product_equals_iterative_pinv(init, steps):
    a, x = kernels().requires_grad_(), torch.randn(2, 3, 8, 5, dtype=torch.float64)
    x.requires_grad_()
    expected = iterative_pinv(a, steps, init) @ x
    torch.testing.assert_close(pinv_product(a, x, steps, init), expected, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(expected)
    gradients = pinv_product_backward(a.detach(), x.detach(), grad, steps, init)
    for got, want in zip(gradients, torch.autograd.grad(expected, (a, x), grad), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_pinv_product_shares_the_gradient_of_equal_maxima():
    a, x = torch.full((1, 1, 4, 4), 0.25, dtype=torch.float64), torch.ones(1, 1, 4, 1).double()
    a.requires_grad_()
    (expected,) = torch.autograd.grad((iterative_pinv(a) @ x).sum(), a)
    got, _ = pinv_product_backward(a.detach(), x, torch.ones_like(x))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_pinv_product_is_accurate_in_float32():
    """On a badly conditioned kernel it is nearer to float64 than eq. 14 in float32 is."""
    q_tilde, k_tilde = torch.randn(2, 1, 1, 64, 4, dtype=torch.float64)
    a = torch.softmax(q_tilde @ k_tilde.mT, -1)
    x = torch.randn(1, 1, 64, 16, dtype=torch.float64)
    assert torch.linalg.cond(a) > 1e5
    single = a.float()
    exact = iterative_pinv(single.double()) @ x.float().double()
    classical = (iterative_pinv(single) @ x.float() - exact).norm() / exact.norm()
    product = (pinv_product(single, x.float()) - exact).norm() / exact.norm()
    assert product < 1e-7
    assert product < classical
