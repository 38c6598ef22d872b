r"""kernel_2⁺ times what the landmarks gathered, in three quarters of the products of eq. 14.

Started from Z_0 = Aᵀ / c, the matrix T_j = A Z_j is symmetric, and eq. 14 is a polynomial of it:

    Z_{j+1} = Z_j p(T_j),  T_{j+1} = T_j p(T_j),  p(t) = 1/4 (13 - 15 t + 7 t² - t³)

so that Z_n x = Z_s p(T_s) ... p(T_{n-1}) x: from step s on, a step is two products of M x M
matrices in place of four, and x has few columns. But T squares the condition of A, and this chain
does not correct itself as eq. 14 does: an error of T_s grows by 13/4 with every step. So the first
steps are eq. 14, and the last CHAIN are the chain; where x is about as wide as A, to apply a step
to it costs what that saves, and the last alone is applied. Measured in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nystromer.backends.blocked import products

CHAIN = 4  # of six steps: float32 errors stay below 1e-5, within five times those of eq. 14


def start_norm(matrix: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Returns c of Z_0 = A^T / c, [B, H, 1, 1]: the largest column sum, over `dims` of [B, H, M].

    Its other factor, the largest row sum, is one: A is a softmax.
    """
    norm = matrix.sum(-2).amax(dims, keepdim=True)[..., None]
    return norm.expand(*matrix.shape[:2], 1, 1)


def start_norm_backward(matrix: Tensor, grad_norm: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Returns the gradient of A from that of c; equal maxima share it, as in torch's amax."""
    columns = matrix.sum(-2)
    largest = columns == columns.amax(dims, keepdim=True)
    share = largest / largest.sum(dims, keepdim=True)  # [B, H, M]
    return (share * grad_norm[..., 0].sum_to_size(share.amax(dims, True).shape))[..., None, :]


def apply_inverse(matrix: Tensor, norm: Tensor, x: Tensor, iterations: int) -> Tensor:
    """Z_n x. matrix: A, [B, H, M, M]; norm: c, [B, H, 1, 1]; x: [B, H, M, Dv]."""
    flat = (y.flatten(0, 1) for y in (matrix, norm, x))
    return torch.cat([_apply(iterations, *part) for part in _parts(*flat)]).view(x.shape)


def _apply(iterations: int, matrix: Tensor, norm: Tensor, x: Tensor) -> Tensor:
    wide = 3 * x.shape[2] >= 2 * matrix.shape[2]
    applied = 1 if wide else min(CHAIN, iterations)
    z = matrix.mT / norm
    for _ in range(iterations - applied):
        z = _Step(matrix, z).next()
    chain = [multiply(matrix, z)]
    for _ in range(applied - 1):
        chain.append(_next(chain[-1]))
    for t in reversed(chain):
        x = _apply_polynomial(t, x)[0]
    return multiply(z, x)


def apply_inverse_backward(
    matrix: Tensor, norm: Tensor, x: Tensor, iterations: int, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns gradients of A (for a constant c), of c [B, H, 1, 1] and of x, from that of Z_n x.

    Of eq. 14 as it stands: where kernel_2 is nearly of rank one, the chain's would be off by 1e-4,
    and by 3e-5 if Zᵀ were kept in place of Z, as Q Zᵀ: Q is symmetric, but not its rounding errors.
    Only the last step is applied to x, as W, Z and x have it: Z p(W) x with W = A Z.
    """
    flat = (y.flatten(0, 1) for y in (matrix, norm, x, grad))
    grads = (_apply_backward(iterations, *part) for part in _parts(*flat))
    grad_matrix, grad_norm, grad_x = map(torch.cat, zip(*grads, strict=True))
    return grad_matrix.view_as(matrix), grad_norm.view_as(norm), grad_x.view_as(x)


def _apply_backward(
    iterations: int, matrix: Tensor, norm: Tensor, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    steps, z = [], matrix.mT / norm
    for _ in range(iterations - 1):
        steps.append(_Step(matrix, z))
        z = steps[-1].next()
    w = multiply(matrix, z)
    x, inner = _apply_polynomial(w, x)

    grad_z = multiply(grad, x.mT)
    grad_x, grad_w = _apply_polynomial_backward(w, inner, multiply(z.mT, grad))
    grad_matrix = multiply(grad_w, z.mT)
    grad_z += multiply(matrix.mT, grad_w)
    for step in reversed(steps):
        grad_z = step.backward(grad_z, grad_matrix)
    grad_norm = -(grad_z * matrix.mT).sum((-2, -1), keepdim=True) / norm**2
    return grad_matrix.add_(grad_z.mT / norm), grad_norm, grad_x


class _Step:
    """Eq. 14: W = A Z, P = 15 I - 7 W + W², Q = 1/4 (13 I - W P), Z' = Z Q."""

    def __init__(self, matrix: Tensor, z: Tensor) -> None:
        self.matrix, self.z = matrix, z
        self.w = multiply(matrix, z)
        p = multiply(self.w, self.w).sub_(self.w, alpha=7)
        p.diagonal(dim1=1, dim2=2).add_(15)
        self.q = multiply(self.w, p).mul_(-0.25)
        self.q.diagonal(dim1=1, dim2=2).add_(3.25)

    def next(self) -> Tensor:
        return multiply(self.z, self.q)

    def backward(self, grad: Tensor, grad_matrix: Tensor) -> Tensor:
        """Returns the gradient of Z from that of Z', and adds to the gradient of A.

        W is symmetric whatever A is, so only the symmetric part of its gradient counts, that of Q
        likewise: two products in place of four.
        """
        grad_q = multiply(self.z.mT, grad)
        grad_q = 0.5 * (grad_q + grad_q.mT)
        x = multiply(self.w, grad_q)
        inner = (1.75 * grad_q).sub_(x, alpha=0.25).sub_(x.mT, alpha=0.125)
        half = multiply(self.w, inner).sub_(grad_q, alpha=1.875)
        grad_w = half + half.mT
        grad_matrix += multiply(grad_w, self.z.mT)
        return multiply(grad, self.q.mT).add_(multiply(self.matrix.mT, grad_w))


def _next(t: Tensor) -> Tensor:
    """T' = T p(T) = 1/4 (13 T - 2.75 T² - Y²), with Y = T² - 3.5 T; T symmetric."""
    square = multiply(t, t)
    y = torch.sub(square, t, alpha=3.5)
    return square.mul_(-0.6875).add_(t, alpha=3.25).sub_(multiply(y, y), alpha=0.25)


def _apply_polynomial(t: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """p(T) x = 1/4 (13 x - 15 u + T v) with u = T x, w = 7 x - u, v = T w; and (x, w, v)."""
    u = multiply(t, x)
    w = torch.sub(7 * x, u)
    v = multiply(t, w)
    result = torch.sub(3.25 * x, u, alpha=3.75).add_(multiply(t, v), alpha=0.25)
    return result, (x, w, v)


def _apply_polynomial_backward(
    t: Tensor, inner: tuple[Tensor, Tensor, Tensor], grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and of T from that of p(T) x."""
    x, w, v = inner
    t_rows = _rows(t.mT)
    grad_v = multiply(t_rows, grad).mul_(0.25)
    grad_w = multiply(t_rows, grad_v)
    grad_u = torch.add(grad_w, grad, alpha=3.75).neg_()
    sides = torch.cat([0.25 * grad, grad_v, grad_u], -1), torch.cat([v, w, x], -1)
    grad_x = torch.add(3.25 * grad, grad_w, alpha=7).add_(multiply(t_rows, grad_u))
    return grad_x, multiply(sides[0], sides[1].mT)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Gives the matrices one by one where oneDNN takes them, else all at once."""
    one = tensors[0][:1]
    apart = products.takes(one, one)
    return zip(*(x.split(1 if apart else max(1, len(x))) for x in tensors), strict=True)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Multiplies two batches of matrices."""
    return products.product(_rows(a), b) if products.takes(a, b) else torch.bmm(a, b)


def _rows(x: Tensor) -> Tensor:
    """Returns x, contiguous if oneDNN takes it, which would copy it for every product."""
    return x.contiguous() if len(x) == 1 else x
