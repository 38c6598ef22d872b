"""Products of two matrices by oneDNN, where torch.bmm would leave half of the machine unused.

torch.bmm of float32 is MKL's, which gives processors that are not Intel's its AVX2 code only. The
operation that torch.compile puts in the place of linear layers is oneDNN's, AVX-512 on all of them:
twice as fast on a Zen 5, and level on an Intel. It can add a bias and multiply by a table before it
writes. It takes one matrix at a time and generates code for every new shape, for half a
millisecond: large products, of few shapes, are for it, and all others for torch.bmm. Its left side
must lie row by row; a sum over the rows of both sides is the gradient of a linear layer's weight,
which torch gives to oneDNN as that of a 1 x 1 convolution.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

LARGE = 1 << 23  # floating-point operations; below, a call costs more than it saves
WIDTH = 64  # tokens in a row of an image


def takes(a: Tensor, b: Tensor) -> bool:
    """Says whether `product` is faster than torch.bmm for [H, N, K] and [H, K, M]."""
    return a.shape[0] == 1 and 2 * a.numel() * b.shape[2] >= LARGE and present(a)


def present(x: Tensor) -> bool:
    """Says whether such matrices can go to oneDNN, and MKL is slower."""
    half = x.dtype in (torch.float32, torch.bfloat16)
    return half and x.device.type == "cpu" and _present() and bool(torch.backends.mkldnn.enabled)


def product(
    a: Tensor, b: Tensor, plus: Tensor | None = None, times: Tensor | None = None
) -> Tensor:
    """Computes (a @ b [+ plus]) [* times]. a: [1, N, K], contiguous; b: [1, K, M]; plus: [1, 1, M];
    times: [1, N, M]."""
    bias = None if plus is None else plus[0, 0]
    linear = torch.ops.mkldnn._linear_pointwise
    if times is None:
        return linear(a, b[0].mT, bias, "none", [], "")
    return linear.binary(a, times, b[0].mT, bias, "mul")


def contracts(a: Tensor, b: Tensor) -> bool:
    """Says whether `contraction` is faster than torch.bmm for [H, M, N] and [H, N, D]."""
    single = a.dtype == torch.float32 and a.shape[0] == 1  # bfloat16 is oneDNN's anyway
    large = b.shape[1] % WIDTH == 0 and 2 * a.numel() * b.shape[2] >= 8 * LARGE
    return single and large and a.mT.is_contiguous() and present(a)


def contraction(a: Tensor, b: Tensor) -> Tensor:
    """Computes a @ b, a sum over tokens. a: [1, M, N], a transposed view; b: [1, N, D]."""
    outputs, inputs = (x.unflatten(1, (-1, WIDTH)).permute(0, 3, 1, 2) for x in (a.mT, b))  # images
    shape = (a.shape[1], b.shape[2], 1, 1)
    # A dilation changes nothing here, but on one thread torch would pass over oneDNN without it.
    return conv2d_weight(inputs, shape, outputs, dilation=2)[None, :, :, 0, 0]


@cache
def _present() -> bool:
    """Says whether oneDNN is faster here: it needs AVX-512, and is another library on ARM."""
    with_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return with_avx512 and hasattr(torch.ops.mkldnn, "_linear_pointwise")
