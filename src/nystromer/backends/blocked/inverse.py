r"""kernel_2⁺ times what the landmarks gathered, in three quarters of the products of eq. 14.

Started from Z_0 = Aᵀ / c, the matrix T_j = A Z_j is symmetric, and eq. 14 is a polynomial of it:

    Z_{j+1} = Z_j p(T_j),  T_{j+1} = T_j p(T_j),  p(t) = 1/4 (13 - 15 t + 7 t² - t³)

so that Z_n x = Z_s p(T_s) ... p(T_{n-1}) x: from step s on, a step is two products of M x M
matrices in place of four, and x has few columns. But T squares the condition of A, and this chain
does not correct itself as eq. 14 does: an error of T_s grows by 13/4 with every step. So the first
steps are eq. 14, and the last CHAIN are the chain. Measured in docs/log.md.
"""

from __future__ import annotations

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
    z = matrix.mT / norm
    for _ in range(_newton_steps(iterations)):
        z = _Step(matrix, z).next()
    chain = [matrix @ z]
    for _ in range(iterations - _newton_steps(iterations) - 1):
        chain.append(_next(chain[-1]))
    for t in reversed(chain):
        u = t @ x
        x = 0.25 * (13 * x - 15 * u + t @ (t @ (7 * x - u)))
    return (z @ x).view(shape)


def apply_inverse_backward(
    matrix: Tensor, norm: Tensor, x: Tensor, iterations: int, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of A (for a constant c), of c [B, H, 1, 1] and of x, from that of Z_n x."""
    shapes = [y.shape for y in (matrix, norm, x)]
    matrix, norm, x, grad = (y.flatten(0, 1) for y in (matrix, norm, x, grad))
    steps, z = [], matrix.mT / norm
    for _ in range(_newton_steps(iterations)):
        steps.append(_Step(matrix, z))
        z = steps[-1].next()
    chain = [matrix @ z]
    for _ in range(iterations - len(steps) - 1):
        chain.append(_next(chain[-1]))
    inputs = []  # what every polynomial was applied to, the last of the chain first
    for t in reversed(chain):
        u = t @ x
        w = 7 * x - u
        v = t @ w
        inputs.append((x, w, v))
        x = 0.25 * (13 * x - 15 * u + t @ v)

    grad_z = grad @ x.mT
    grad = z.mT @ grad
    direct = []  # gradients of every T from what it was applied to, the first of the chain first
    for t, (x, w, v) in zip(chain, reversed(inputs), strict=True):
        grad_v = 0.25 * t @ grad
        grad_w = t @ grad_v
        grad_u = -3.75 * grad - grad_w
        sides = torch.cat([0.25 * grad, grad_v, grad_u], -1), torch.cat([v, w, x], -1)
        direct.append(sides[0] @ sides[1].mT)
        grad = 3.25 * grad + 7 * grad_w + t @ grad_u
    grad_t = _symmetric(direct.pop())
    for t in reversed(chain[:-1]):
        grad_t = _next_backward(t, grad_t) + _symmetric(direct.pop())

    grad_matrix = grad_t @ z.mT
    grad_z += matrix.mT @ grad_t
    for step in reversed(steps):
        grad_matrix += step.backward_(grad_z)
    grad_norm = -(grad_z * matrix.mT).sum((-2, -1), keepdim=True) / norm**2
    grad_matrix.add_(grad_z.mT / norm)
    return grad_matrix.view(shapes[0]), grad_norm.view(shapes[1]), grad.view(shapes[2])


class _Step:
    """A step of eq. 14: W = A Z, P_1 = 7 I - W, P_2 = 15 I - W P_1, P_3 = 13 I - W P_2."""

    def __init__(self, matrix: Tensor, z: Tensor) -> None:
        self.matrix, self.z = matrix, z
        self.w = matrix @ z
        self.p_1 = _from_identity(7, self.w.clone())
        self.p_2 = _from_identity(15, self.w @ self.p_1)
        self.p_3 = _from_identity(13, self.w @ self.p_2)

    def next(self) -> Tensor:
        """Z' = 1/4 Z P_3."""
        return (self.z @ self.p_3).mul_(0.25)

    def backward_(self, grad: Tensor) -> Tensor:
        """Gradient of A; that of Z', given, becomes that of Z. The lines above, last to first."""
        grad_p_3 = 0.25 * self.z.mT @ grad
        grad_p_2 = -self.w.mT @ grad_p_3
        grad_w = self.w.mT @ grad_p_2
        grad_w.baddbmm_(grad_p_3, self.p_2.mT, alpha=-1).baddbmm_(grad_p_2, self.p_1.mT, alpha=-1)
        grad.copy_(0.25 * grad @ self.p_3.mT).baddbmm_(self.matrix.mT, grad_w)
        return grad_w @ self.z.mT


def _newton_steps(iterations: int) -> int:
    return max(0, iterations - CHAIN)


def _next(t: Tensor) -> Tensor:
    """T p(T) = 1/4 (13 T - 2.75 T² - Y²), with Y = T² - 3.5 T."""
    square = t @ t
    y = square - 3.5 * t
    return square.mul_(-2.75).add_(t, alpha=13).baddbmm_(y, y, alpha=-1).mul_(0.25)


def _next_backward(t: Tensor, grad: Tensor) -> Tensor:
    """Gradient of T from that of T p(T), both symmetric."""
    square = t @ t
    y = square - 3.5 * t
    grad_y = _symmetric(grad @ y).mul_(-0.5)
    grad_square = grad_y.add(grad, alpha=-0.6875)
    grad_t = _symmetric(grad_square @ t).mul_(2)
    return grad_t.add_(grad, alpha=3.25).add_(grad_y, alpha=-3.5)


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT).mul_(0.5)


def _from_identity(factor: float, x: Tensor) -> Tensor:
    """factor · I - x, in place."""
    x.neg_().diagonal(0, -2, -1).add_(factor)
    return x
