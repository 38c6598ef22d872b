"""The gradient of kernel_2 that stands written out, against autograd through the equations."""

import pytest
import torch

from cases import relative_error
from nystromer.pinv import Pinv
from nystromer.pinv_gradient import pinv_backward

KINDS = ("gauss", "near", "equal")


def logits(kind, m, batch=2, heads=2):
    """Sharp and flat rows; almost equal rows, as long segments have them, near rank one; and
    neighbours alike, as the landmarks of a text, near singular."""
    if kind == "equal":
        return 0.004 * torch.randn(batch, heads, m, m, dtype=torch.float64)
    if kind == "gauss":
        sharpness = torch.tensor([0.3, 1, 5, 20], dtype=torch.float64).view(batch, heads, 1, 1)
        q, k = torch.randn(2, batch, heads, m, 16, dtype=torch.float64)
        return sharpness * q @ k.mT / 4
    position = torch.arange(m, dtype=torch.float64)
    width = torch.tensor([2, 5, 10, 20], dtype=torch.float64).view(batch, heads, 1, 1)
    return -((position[:, None] - position) ** 2) / (2 * width)


def found(logits, grad, pinv):
    """Returns the gradient of the logits of kernel_2 as a backend computes it."""
    kernel_2 = torch.softmax(logits, -1)
    grad_kernel = pinv_backward(pinv, kernel_2, grad)
    return kernel_2 * (grad_kernel - (grad_kernel * kernel_2).sum(-1, keepdim=True))


def expected(logits, grad, pinv):
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(pinv.of(torch.softmax(logits, -1)), logits, grad)[0]


@pytest.mark.parametrize("init", ["matrix", "sequence", "batch"])
@pytest.mark.parametrize("steps", [1, 2, 6, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_eq_14_is_that_of_autograd(kind, steps, init):
    """Equal columns share the gradient of the start value."""
    table, grad, pinv = logits(kind, 12), torch.randn(2, 2, 12, 12).double(), Pinv(steps, init)
    ours, theirs = found(table, grad, pinv), expected(table, grad, pinv)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_ridge_is_that_of_autograd(kind):
    table, grad, pinv = logits(kind, 12), torch.randn(2, 2, 12, 12).double(), Pinv(ridge=1e-2)
    torch.testing.assert_close(found(table, grad, pinv), expected(table, grad, pinv))


def test_equal_columns_share_the_gradient_of_the_start_value():
    flat, grad = torch.zeros(1, 1, 4, 4).double(), torch.randn(1, 1, 4, 4).double()
    torch.testing.assert_close(found(flat, grad, Pinv()), expected(flat, grad, Pinv()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [64, 256])
def test_in_float32_the_gradient_is_as_accurate_as_that_of_autograd(kind, m):
    table, grad = logits(kind, m), torch.randn(2, 2, m, m).double()
    exact = expected(table, grad, Pinv())
    single = (table.float(), grad.float(), Pinv())
    limit = max(1e-5, 2 * relative_error(expected(*single), exact))
    assert relative_error(found(*single), exact) < limit
