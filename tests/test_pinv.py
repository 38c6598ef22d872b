import numpy as np
import pytest
import torch

import oracle
from nystromer.pinv import (
    Pinv,
    iterative_pinv,
    pinv_start,
    ridge_pinv,
    ridge_pinv_backward,
    ridge_pinv_by_products,
)

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


def test_ridge_pinv_equals_oracle():
    a = kernels()
    for b, h in np.ndindex(2, 3):
        expected = oracle.ridge_pinv(a[b, h].numpy(), 1e-2)
        torch.testing.assert_close(ridge_pinv(a, 1e-2)[b, h], torch.from_numpy(expected))


def test_ridge_pinv_is_right_in_float32_where_the_ridge_is_tiny():
    a = kernels().float()
    expected = ridge_pinv(a.double(), 1e-8)
    torch.testing.assert_close(ridge_pinv(a, 1e-8).double(), expected, rtol=1e-6, atol=1e-6)


def test_ridge_pinv_backward_equals_autograd():
    a, grad = kernels().requires_grad_(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    (expected,) = torch.autograd.grad(ridge_pinv(a, 1e-2), a, grad)
    torch.testing.assert_close(ridge_pinv_backward(a.detach(), grad, 1e-2), expected)


def test_pinv_takes_the_ridge_where_there_is_one():
    a = kernels()
    assert torch.equal(Pinv(ridge=1e-2).of(a), ridge_pinv(a, 1e-2))
    assert torch.equal(Pinv(3, "sequence").of(a), iterative_pinv(a, 3, "sequence"))


@pytest.mark.parametrize("ridge", [1e-1, 1e-3, 1e-5])
def test_ridge_pinv_by_products_equals_ridge_pinv(ridge):
    """For sharp and flat attention maps, of rows that are all the same too."""
    logits = (
        torch.randn(4, 3, 64, 64, dtype=torch.float64)
        * torch.tensor([0, 1, 5, 30.0])[:, None, None, None]
    )
    matrix = logits.softmax(-1)
    expected = ridge_pinv(matrix, ridge)
    torch.testing.assert_close(
        ridge_pinv_by_products(matrix, ridge), expected, rtol=1e-6, atol=1e-9
    )
