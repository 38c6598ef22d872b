r"""kernel_2⁺ times what the landmarks gathered, in three quarters of the products of eq. 14.

Started from Z_0 = Aᵀ / c, the matrix T_j = A Z_j is symmetric, and eq. 14 is a polynomial of it:

    Z_{j+1} = Z_j p(T_j),  T_{j+1} = T_j p(T_j),  p(t) = 1/4 (13 - 15 t + 7 t² - t³)

so that Z_n x = Z_s p(T_s) ... p(T_{n-1}) x: from step s on, a step is two products of M x M
matrices in place of four, and x has few columns. But T squares the condition of A, and this chain
does not correct itself as eq. 14 does: an error of T_s grows by 13/4 with every step. So the first
steps are eq. 14, and the last CHAIN are the chain. Measured in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHAIN = 4  # of six steps: float32 errors stay below 1e-5, within five times those of eq. 14


def start_norm(matrix: Tensor, dims: tuple[int, ...]) -> Tensor:
    """c of Z_0, [B, H, 1, 1]: the largest column sum of A, over `dims` of [B, H, M].

    Its other factor, the largest row sum, is one: A is a softmax.
    """
    norm = matrix.sum(-2).amax(dims, keepdim=True)[..., None]
    return norm.expand(*matrix.shape[:2], 1, 1)


def start_norm_backward(matrix: Tensor, grad_norm: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Gradient of A from that of c [B, H, 1, 1]; equal maxima share it, as in torch's amax."""
    columns = matrix.sum(-2)
    largest = columns == columns.amax(dims, keepdim=True)
    share = largest / largest.sum(dims, keepdim=True)  # [B, H, M]
    return (share * grad_norm[..., 0].sum_to_size(share.amax(dims, True).shape))[..., None, :]


def apply_inverse(matrix: Tensor, norm: Tensor, x: Tensor, iterations: int) -> Tensor:
    """Z_n x. matrix: A, [B, H, M, M]; norm: c, [B, H, 1, 1]; x: [B, H, M, Dv]."""
    shape = x.shape
    matrix, norm, x = (y.flatten(0, 1) for y in (matrix, norm, x))
    z, other, y, *memory = matrix.new_empty(6, *matrix.shape)  # fresh pages cost as much as sums
    torch.div(matrix.mT, norm, out=z)
    for _ in range(_newton_steps(iterations)):
        z, other = _Step(matrix, z, memory).next(other), z
    memory.append(other)
    chain = [torch.bmm(matrix, z, out=memory[0])]
    for out in memory[1 : iterations - _newton_steps(iterations)]:
        chain.append(_next(chain[-1], y, out))
    for t in reversed(chain):
        x = _apply_polynomial(t, x)[0]
    return (z @ x).view(shape)


def apply_inverse_backward(
    matrix: Tensor, norm: Tensor, x: Tensor, iterations: int, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of A (for a constant c), of c [B, H, 1, 1] and of x, from that of Z_n x.

    Of eq. 14 as it stands: where kernel_2 is nearly of rank one, the chain's would be off by 1e-4.
    Only the last step is applied to x, as W, Z and x have it: Z p(W) x with W = A Z.
    """
    shapes = [y.shape for y in (matrix, norm, x)]
    matrix, norm, x, grad = (y.flatten(0, 1) for y in (matrix, norm, x, grad))
    steps, z = [], matrix.mT / norm
    for _ in range(iterations - 1):
        steps.append(_Step(matrix, z, [torch.empty_like(matrix) for _ in range(3)]))
        z = steps[-1].next(torch.empty_like(matrix))
    w = matrix @ z
    x, inner = _apply_polynomial(w, x)

    grad_z = grad @ x.mT
    grad_x, grad_w = _apply_polynomial_backward(w, inner, z.mT @ grad)
    grad_matrix = grad_w @ z.mT
    grad_z.baddbmm_(matrix.mT, grad_w)
    for step in reversed(steps):
        grad_z = step.backward(grad_z, grad_matrix)
    grad_norm = -(grad_z * matrix.mT).sum((-2, -1), keepdim=True) / norm**2
    grad_matrix.add_(grad_z.mT / norm)
    return grad_matrix.view(shapes[0]), grad_norm.view(shapes[1]), grad_x.view(shapes[2])


class _Step:
    """Eq. 14: W = A Z, P = 15 I - 7 W + W², Q = 1/4 (13 I - W P), Z' = Z Q."""

    def __init__(self, matrix: Tensor, z: Tensor, memory: Sequence[Tensor]) -> None:
        self.matrix, self.z = matrix, z
        self.w, self.p, self.q = memory
        torch.bmm(matrix, z, out=self.w)
        torch.baddbmm(self.w, self.w, self.w, beta=-7, out=self.p)
        self.p.diagonal(dim1=1, dim2=2).add_(15)
        torch.baddbmm(self.w, self.w, self.p, beta=0, alpha=-0.25, out=self.q)
        self.q.diagonal(dim1=1, dim2=2).add_(3.25)

    def next(self, out: Tensor) -> Tensor:
        return torch.bmm(self.z, self.q, out=out)

    def backward(self, grad: Tensor, grad_matrix: Tensor) -> Tensor:
        """Gradient of Z from that of Z'; adds to that of A. The lines above, last to first."""
        grad_q = self.z.mT @ grad
        grad_p = (self.w.mT @ grad_q).mul_(-0.25)
        grad_w = torch.baddbmm(grad_p, self.w.mT, grad_p, beta=-7)
        grad_w.baddbmm_(grad_p, self.w.mT)
        grad_w.baddbmm_(grad_q, self.p.mT, alpha=-0.25)
        grad_matrix.baddbmm_(grad_w, self.z.mT)
        return (grad @ self.q.mT).baddbmm_(self.matrix.mT, grad_w)


def _next(t: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """T' = T p(T) = 1/4 (13 T - 2.75 T² - Y²), with Y = T² - 3.5 T; T symmetric."""
    square = torch.bmm(t, t, out=out)
    torch.sub(square, t, alpha=3.5, out=y)
    return square.mul_(-0.6875).add_(t, alpha=3.25).baddbmm_(y, y, alpha=-0.25)


def _apply_polynomial(t: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """p(T) x = 1/4 (13 x - 15 u + T v) with u = T x, w = 7 x - u, v = T w; and (x, w, v)."""
    u = t @ x
    w = torch.sub(7 * x, u)
    v = t @ w
    result = torch.sub(3.25 * x, u, alpha=3.75).baddbmm_(t, v, alpha=0.25)
    return result, (x, w, v)


def _apply_polynomial_backward(
    t: Tensor, inner: tuple[Tensor, Tensor, Tensor], grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of T from that of p(T) x."""
    x, w, v = inner
    grad_v = (t.mT @ grad).mul_(0.25)
    grad_w = t.mT @ grad_v
    grad_u = torch.add(grad_w, grad, alpha=3.75).neg_()
    sides = torch.cat([0.25 * grad, grad_v, grad_u], -1), torch.cat([v, w, x], -1)
    grad_x = torch.add(3.25 * grad, grad_w, alpha=7).baddbmm_(t.mT, grad_u)
    return grad_x, sides[0] @ sides[1].mT


def _newton_steps(iterations: int) -> int:
    return max(0, iterations - CHAIN)
