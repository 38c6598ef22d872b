"""kernel_2⁺ x by eq. 14 and the polynomial chain, against eq. 14 as it is written."""

import pytest
import torch

from cases import relative_error
from nystromer.backends.blocked.inverse import (
    apply_inverse,
    apply_inverse_backward,
    start_norm,
    start_norm_backward,
)
from nystromer.pinv import NORM_DIMS, iterative_pinv

INITS = ("matrix", "sequence", "batch")


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


def found(logits, x, grad, steps, init):
    """Z x, and the gradients of the logits and of x."""
    kernel_2, dims = torch.softmax(logits, -1), NORM_DIMS[init]
    norm = start_norm(kernel_2, dims)
    result = apply_inverse(kernel_2, norm, x, steps)
    grad_kernel, grad_norm, grad_x = apply_inverse_backward(kernel_2, norm, x, steps, grad)
    grad_kernel = grad_kernel + start_norm_backward(kernel_2, grad_norm, dims)
    grad_logits = kernel_2 * (grad_kernel - (grad_kernel * kernel_2).sum(-1, keepdim=True))
    return result, grad_logits, grad_x


def expected(logits, x, grad, steps, init):
    logits, x = (y.detach().requires_grad_() for y in (logits, x))
    result = iterative_pinv(torch.softmax(logits, -1), steps, init) @ x
    return result.detach(), *torch.autograd.grad(result, (logits, x), grad)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 9])
@pytest.mark.parametrize("kind", ["gauss", "near", "equal"])
@pytest.mark.parametrize("columns", [3, 12])
def test_apply_inverse_and_its_gradients_equal_eq_14(columns, kind, steps, init):
    x, grad = torch.randn(2, 2, 2, 12, columns, dtype=torch.float64)
    table = logits(kind, 12)
    for ours, theirs in zip(
        found(table, x, grad, steps, init), expected(table, x, grad, steps, init), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["gauss", "near", "equal"])
@pytest.mark.parametrize("m", [64, 256])
def test_apply_inverse_in_float32_is_nearly_as_accurate_as_eq_14(kind, m):
    x, grad = torch.randn(2, 2, 2, m, 16, dtype=torch.float64)
    inputs = (logits(kind, m), x, grad)
    single = [y.float() for y in inputs]
    exact = expected(*inputs, 6, "matrix")

    def errors(results):
        return [relative_error(a, b) for a, b in zip(results, exact, strict=True)]

    ours, as_written = errors(found(*single, 6, "matrix")), errors(expected(*single, 6, "matrix"))
    assert all(a < max(1e-5, 2 * b) for a, b in zip(ours, as_written, strict=True))


def test_start_norm_backward_shares_the_gradient_of_equal_maxima():
    flat = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x, grad = torch.randn(2, 1, 1, 4, 2, dtype=torch.float64)
    for ours, theirs in zip(
        found(flat, x, grad, 6, "matrix"), expected(flat, x, grad, 6, "matrix"), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
