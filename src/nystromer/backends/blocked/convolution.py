"""The depthwise convolution over values as matrix products: one filter a head, shared by features.

A tile of T outputs is a banded (Toeplitz) matrix [T, T + K - 1] times the window of values around
it. Torch's own depthwise convolution takes longer on a CPU than both attentions together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.backends.blocked.sequences import Sequence, Workspace

TILE = 16  # outputs a Toeplitz matrix makes; T + K - 1 products each


def toeplitz(taps: Tensor) -> Tensor:
    """Makes the matrix [H, T, T + K - 1] with taps[h, t] at [h, i, i + t]. taps: [H, K], odd K."""
    heads, kernel = taps.shape
    matrix = taps.new_zeros(heads, TILE, TILE + kernel - 1)
    _band(matrix).copy_(taps[:, None])
    return matrix


def _band(matrix: Tensor) -> Tensor:
    """Returns a view [H, T, K] of [H, T, T + K - 1] that has [h, i, i + t] at [h, i, t]."""
    heads, _, reach = matrix.shape
    return matrix.as_strided((heads, TILE, reach - TILE + 1), (TILE * reach, reach + 1, 1))


class Convolution:
    """sum_t taps[h, t] · x[h, i + t - K // 2], for blocks of positions i.

    Args:
        matrix: `toeplitz` of the taps, [H, T, T + K - 1].
        x: [H, N, D], read through `sequence`: zero outside it and at padding.
    """

    def __init__(self, matrix: Tensor, x: Tensor, sequence: Sequence, work: Workspace) -> None:
        self.matrix, self.x, self.sequence, self.work = matrix, x, sequence, work
        self.repeated = matrix[:0]

    def block(self, i: int, j: int) -> Tensor:
        """Returns the outputs at positions i ... j, [H, j - i, D], in scratch memory."""
        return self.product(self.windows(i, j))[:, : j - i]

    def add_to(self, output: Tensor, sequence: Sequence) -> None:
        """Adds all outputs at the real positions of `sequence`."""
        for i, j in sequence.blocks(self.work.block):
            sequence.write(output, i, j, output[:, i:j], self.block(i, j))

    def product(self, windows: Tensor) -> Tensor:
        """Convolves windows [H * tiles, T + K - 1, D] to outputs [H, tiles * T, D]."""
        heads, (count, _, dim) = len(self.matrix), windows.shape
        if len(self.repeated) != count:  # a view, if of one head
            shape = (heads, count // heads, *self.matrix.shape[1:])
            self.repeated = self.matrix[:, None].expand(shape).flatten(0, 1)
        out = self.work("convolved", count, TILE, dim, dtype=windows.dtype)
        torch.bmm(self.repeated, windows, out=out)
        return out.view(heads, -1, dim)

    def windows(self, i: int, j: int) -> Tensor:
        """Returns the windows of x that the tiles of i ... j read, [H * tiles, T + K - 1, D].

        As many tiles more as make all windows of all heads equally far apart, for one product.
        """
        (heads, _, dim), reach = self.x.shape, self.matrix.shape[2]
        kernel = reach - TILE + 1
        tiles = -(-(j - i + kernel - 1) // TILE)
        rows = heads * tiles * TILE
        memory = self.work("halo", rows + reach, dim, dtype=self.matrix.dtype)
        memory[rows:].zero_()
        halo = memory[:rows].view(heads, tiles * TILE, dim)
        first = i - kernel // 2
        start = max(first, self.sequence.start)
        stop = max(start, min(j + kernel // 2, self.sequence.stop))
        halo[:, : start - first].zero_()
        halo[:, start - first : stop - first] = self.sequence.read(
            self.x, start, stop, self.work, "halo source"
        )
        halo[:, stop - first :].zero_()
        shape = (heads * tiles, reach, dim)
        windows = memory.as_strided(shape, (TILE * dim, dim, 1))
        if windows.dtype == torch.bfloat16:  # such products would copy them to fresh memory
            windows = self.work("windows", *shape, dtype=windows.dtype).copy_(windows)
        return windows


class ConvolutionBackward:
    """Computes the gradient of the input a block at a time, and that of the taps at the end.

    The input's gradient is the convolution of grad_output with reversed taps. Every tile of the
    input times its window of grad_output gives a [T, T + K - 1] table whose diagonals are the taps'
    gradient, last tap first; the tables are summed, and their diagonals read once.

    Args:
        reversed_taps: the convolution of grad_output with them.
        table: that sum, [H, T, T + K - 1], to be added to.
    """

    def __init__(self, reversed_taps: Convolution, table: Tensor) -> None:
        self.reversed, self.table, self.work = reversed_taps, table, reversed_taps.work

    def block(self, x: Tensor, i: int, j: int) -> Tensor:
        """Returns the gradient of the input x[:, i:j], [H, j - i, D], in scratch memory."""
        windows = self.reversed.windows(i, j)  # of grad_output
        heads, dim, (count, reach, _) = len(x), x.shape[2], windows.shape
        if heads == 1 and (j - i) % TILE == 0:
            tiles = x.view(-1, TILE, dim)
        else:
            padded = self.work("tiles", heads, count // heads * TILE, dim, dtype=x.dtype)
            padded[:, : j - i] = x
            padded[:, j - i :].zero_()
            tiles = padded.view(count, TILE, dim)
        tables = self.work("tables", len(tiles), TILE, reach, dtype=x.dtype)
        torch.bmm(tiles, windows[: len(tiles)].mT, out=tables)
        self.table += tables.view(heads, -1, TILE, reach).sum(1, dtype=self.table.dtype)
        return self.reversed.product(windows)[:, : j - i]

    def add_to(self, grad: Tensor, x: Tensor, sequence: Sequence) -> None:
        """Adds the gradient of x at the real positions of `sequence`."""
        for i, j in sequence.blocks(self.work.block):
            x_block = sequence.read(x, i, j, self.work, "input")
            sequence.write(grad, i, j, grad[:, i:j], self.block(x_block, i, j))


def taps_gradient(table: Tensor) -> Tensor:
    """Returns the gradient of the taps, [H, K], from the sum of tables [H, T, T + K - 1]."""
    return _band(table).sum(1).flip(1)
