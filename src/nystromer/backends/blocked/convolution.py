"""The depthwise convolution over values as matrix products: one filter a head, shared by features.

A tile of T outputs is a banded (Toeplitz) matrix [T, T + K - 1] times the window of values around
it. Torch's own depthwise convolution takes longer on a CPU than both attentions together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.backends.blocked.sequences import Sequence, Workspace

TILE = 16  # outputs a Toeplitz matrix makes; T + K - 1 products each


class Convolution:
    """sum_t taps[h, t] · x[h, i + t - K // 2], for blocks of positions i.

    Args:
        taps: [H, K], odd K.
        x: [H, N, D], read through `sequence`: zero outside it and at padding.
    """

    def __init__(self, taps: Tensor, x: Tensor, sequence: Sequence, work: Workspace) -> None:
        self.x, self.sequence, self.work = x, sequence, work
        self.heads, self.kernel = taps.shape
        self.toeplitz = _toeplitz(taps)  # [H, T, T + K - 1]
        self.repeated = self.toeplitz[:0]

    def block(self, i: int, j: int) -> Tensor:
        """Outputs at positions i ... j, [H, j - i, D]; a view of scratch memory."""
        return self.product(self.windows(i, j))[:, : j - i]

    def add_to(self, output: Tensor, sequence: Sequence) -> None:
        """Adds all outputs at the real positions of `sequence`."""
        for i, j in sequence.blocks(self.work.block):
            sequence.write(output, i, j, output[:, i:j], self.block(i, j))

    def product(self, windows: Tensor) -> Tensor:
        """Outputs [H, tiles * T, D] of windows [H, tiles, T + K - 1, D]."""
        heads, tiles, _, dim = windows.shape
        if len(self.repeated) != heads * tiles:
            self.repeated = self.toeplitz.repeat_interleave(tiles, 0)
        windows = windows.flatten(0, 1)
        if windows.dtype == torch.bfloat16:  # such products would copy them to fresh memory
            windows = self.work("windows", *windows.shape, dtype=windows.dtype).copy_(windows)
        out = self.work("convolved", heads * tiles, TILE, dim, dtype=windows.dtype)
        torch.bmm(self.repeated, windows, out=out)
        return out.view(heads, tiles * TILE, dim)

    def windows(self, i: int, j: int) -> Tensor:
        """The overlapping windows of x that the tiles of i ... j read, [H, tiles, T + K - 1, D].

        As many tiles more as make all windows of all heads equally far apart, for one product.
        """
        dim, reach = self.x.shape[2], TILE + self.kernel - 1
        tiles = -(-(j - i + self.kernel - 1) // TILE)
        rows = self.heads * tiles * TILE
        memory = self.work("halo", rows + reach, dim, dtype=self.toeplitz.dtype)
        memory[rows:].zero_()
        halo = memory[:rows].view(self.heads, tiles * TILE, dim)
        first = i - self.kernel // 2
        start = max(first, self.sequence.start)
        stop = max(start, min(j + self.kernel // 2, self.sequence.stop))
        halo[:, : start - first].zero_()
        halo[:, start - first : stop - first] = self.sequence.read(
            self.x, start, stop, self.work, "halo source"
        )
        halo[:, stop - first :].zero_()
        shape = (self.heads, tiles, reach, dim)
        return memory.as_strided(shape, (halo.stride(0), TILE * dim, dim, 1))


class ConvolutionBackward:
    """Gradients of a convolution: of its input a block at a time, of its taps at the end.

    The input's gradient is the convolution of grad_output with reversed taps. Every tile of the
    input times its window of grad_output gives a [T, T + K - 1] table whose diagonals are the taps'
    gradient, last tap first; the tables are summed, and their diagonals read once.
    """

    def __init__(self, taps: Tensor, grad_output: Tensor, sequence: Sequence, work: Workspace):
        heads, self.kernel = taps.shape
        self.reversed = Convolution(taps.flip(1), grad_output, sequence, work)
        self.table = work.zeros(heads, TILE, TILE + self.kernel - 1)
        self.work = work

    def block(self, x: Tensor, i: int, j: int) -> Tensor:
        """Gradient of the input x[:, i:j] = [H, j - i, D]; a view of scratch memory."""
        windows = self.reversed.windows(i, j)  # of grad_output, [H, > tiles, T + K - 1, D]
        heads, _, reach, dim = windows.shape
        tiles = -(-(j - i) // TILE)
        padded = self.work("tiles", heads, tiles * TILE, dim, dtype=x.dtype)
        padded[:, : j - i] = x
        padded[:, j - i :].zero_()
        by_row = self.work("tiles by row", heads, TILE, tiles, dim, dtype=x.dtype)
        by_row.copy_(padded.unflatten(1, (tiles, TILE)).transpose(1, 2))
        window_rows = self.work("windows by row", heads, reach, tiles, dim, dtype=x.dtype)
        window_rows.copy_(windows[:, :tiles].transpose(1, 2))
        self.work.add_product(self.table, by_row.flatten(2), window_rows.flatten(2).mT)
        return self.reversed.product(windows)[:, : j - i]

    def add_to(self, grad: Tensor, x: Tensor, sequence: Sequence) -> None:
        """Adds the gradient of x at the real positions of `sequence`."""
        for i, j in sequence.blocks(self.work.block):
            x_block = sequence.read(x, i, j, self.work, "input")
            sequence.write(grad, i, j, grad[:, i:j], self.block(x_block, i, j))

    def taps(self) -> Tensor:
        """Gradient of the taps, [H, K]."""
        last = self.kernel - 1
        return torch.stack(
            [self.table.diagonal(last - t, 1, 2).sum(-1) for t in range(self.kernel)], 1
        )


def _toeplitz(taps: Tensor) -> Tensor:
    """[H, T, T + K - 1] with taps[h, t] at [h, i, i + t]."""
    heads, kernel = taps.shape
    matrix = taps.new_zeros(heads, TILE, TILE + kernel - 1)
    row = torch.arange(TILE, device=taps.device)[:, None]
    matrix[:, row, row + torch.arange(kernel, device=taps.device)] = taps[:, None]
    return matrix
