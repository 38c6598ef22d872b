"""Shows what goes wrong in other implementations, and whether it does in ours.

    python -m benchmarks attention.differences

Takes under a minute.

Every defect is measured in theirs and then in ours. Needs nystrom-attention 0.0.14 and
transformers. Prints a table and writes results/differences.csv.
"""

from __future__ import annotations

import nystrom_attention as old
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from transformers import NystromformerConfig
from transformers.models.nystromformer import modeling_nystromformer

from benchmarks import common
from nystromer import NystromAttention, nystrom_attention
from nystromer.compat import lucidrains

PACKAGE = "nystrom-attention 0.0.14"
TRANSFORMERS = f"transformers {transformers.__version__}"
TORCH = f"torch {torch.__version__.split('+')[0]}"
SIZES = {"dim": 512, "dim_head": 64, "heads": 8, "num_landmarks": 256, "residual": False}


def change(a: Tensor, b: Tensor) -> str:
    """Returns how far a is from b, relative to b."""
    return f"{float((a - b).double().norm() / b.double().norm()):.1e}"


def attempt(call) -> str:
    """Returns "runs", or the error that the call ends in."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return "runs"


def package_padding():
    """Measures what its padding does: N = k² + 1 is never a multiple of 256, so zeros are added."""
    theirs = old.NystromAttention(**SIZES).eval()
    ours = lucidrains.NystromAttention(**SIZES, mode="fixed").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 1025, 512)
    padded = torch.cat([torch.zeros(1, 255, 512), x], 1)
    mask = torch.arange(1280)[None] >= 255
    yield (
        "N = 1,025, M = 256, no convolution: output change by its own zero padding",
        change(theirs(x), ours(x)),
    )
    yield (
        "the same, ours, padded by hand and masked",
        change(ours(padded, mask=mask)[:, 255:], ours(x)),
    )


def package_neighbours():
    """Measures what another sequence of the batch does to an output."""
    theirs = old.NystromAttention(**{**SIZES, "num_landmarks": 64}).eval()
    ours = lucidrains.NystromAttention(**{**SIZES, "num_landmarks": 64}, mode="fixed").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 1024, 512)
    both = torch.cat([x, 20 * torch.randn(1, 1024, 512)])
    yield "output change by a louder neighbour in the batch", change(theirs(both)[:1], theirs(x))
    yield "the same, ours", change(ours(both)[:1], ours(x))


def package_half():
    """Tries the layers in bfloat16."""
    x = torch.randn(1, 1025, 512).bfloat16()
    yield ".bfloat16()", attempt(lambda: old.NystromAttention(**SIZES).bfloat16()(x))
    yield "the same, ours", attempt(lambda: lucidrains.NystromAttention(**SIZES).bfloat16()(x))


def package_class_token():
    """Counts the bytes that the attention of a class token over 30,000 patches takes."""
    n, heads = 30_001, 8
    padded = -(-n // 256) * 256
    map_bytes, row_bytes = 4 * heads * padded**2, 4 * heads * n
    yield "numbers kept for one heat map, N = 30,001", f"{map_bytes / 1e9:.0f} GB (return_attn)"
    yield "the same, ours", f"{row_bytes / 1e6:.1f} MB (attention_rows)"


def transformers_attention(num_landmarks: int, seq_len: int, **config):
    config = NystromformerConfig(
        hidden_size=256,
        num_attention_heads=4,
        num_landmarks=num_landmarks,
        segment_means_seq_len=seq_len,
        **config,
    )
    layer = modeling_nystromformer.NystromformerSelfAttention(config).eval()
    layer.conv_kernel_size = None  # the attention alone
    return layer


def transformers_dense():
    """Measures what the published configurations compute: exact attention.

    They have num_landmarks = segment_means_seq_len = 64.
    """
    layer, x = transformers_attention(64, 64), torch.randn(1, 512, 256)
    heads = [
        p(x).view(1, 512, 4, 64).transpose(1, 2) for p in (layer.query, layer.key, layer.value)
    ]
    exact = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    ours = nystrom_attention(*heads, num_landmarks=64).transpose(1, 2).flatten(2)
    yield (
        "published config: difference from exact attention (it is O(N²))",
        change(layer(x)[0], exact),
    )
    yield "the same weights, ours with M = 64 (Nyström: an approximation)", change(ours, exact)


def transformers_nystrom():
    """Tries other lengths, a batch, and padding where transformers does compute Nyström."""
    layer = transformers_attention(64, 512)
    x = torch.randn(2, 512, 256)
    ours = NystromAttention(256, 4, conv_kernel_size=None)
    real = torch.arange(400).expand(2, -1) < 300
    yield "real Nyström branch, N other than the configured", attempt(lambda: layer(x[:, :400]))
    yield (
        "real Nyström branch, sequence alone and in a batch",
        change(layer(x)[0][:1], layer(x[:1])[0]),
    )
    config = layer_config(64, 512)
    model = transformers.NystromformerModel(config).eval()
    ids = torch.randint(0, 99, (2, 512))
    padding = torch.ones_like(ids)
    padding[1, 300:] = 0
    yield (
        "real Nyström branch with a padding mask",
        attempt(lambda: model(input_ids=ids, attention_mask=padding)),
    )
    yield "the same two, ours", attempt(lambda: ours(x[:, :400], real))
    yield (
        "inv_coeff_init_option=True",
        attempt(lambda: transformers_attention(64, 512, inv_coeff_init_option=True)),
    )


def layer_config(num_landmarks: int, seq_len: int) -> NystromformerConfig:
    return NystromformerConfig(
        vocab_size=99,
        hidden_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=256,
        num_landmarks=num_landmarks,
        segment_means_seq_len=seq_len,
    )


def torch_convolution():
    """Measures the gradient of the taps of a depthwise convolution, float32 on a CPU."""
    for n, kernel in ((1000, 33), (4096, 33), (1000, 65)):
        v, grad = (torch.randn(1, 8, n, 64, dtype=torch.float64) for _ in range(2))
        taps = torch.randn(8, kernel, dtype=torch.float64)
        gradients = []
        for dtype in (torch.float64, torch.float32):
            w = taps.to(dtype).requires_grad_()
            out = F.conv2d(v.to(dtype), w[:, None, :, None], padding=(kernel // 2, 0), groups=8)
            gradients.append(torch.autograd.grad(out, w, grad.to(dtype))[0])
        yield (
            f"conv2d, N = {n:,}, K = {kernel}: error of the taps' gradient",
            change(*reversed(gradients)),
        )
        x = v.float()
        w = taps.float().requires_grad_()
        out = nystrom_attention(x, x, x, conv_weight=w, backend="blocked")
        got = torch.autograd.grad(out, w, grad.float())[0]
        yield "the same, ours", change(got, gradients[0])


def torch_bfloat16():
    """Measures the queries' gradient where keys and values have a mean, as in trained layers."""
    for mean in (0, 3):
        q, k, v, grad = (torch.randn(1, 2, 4096, 64) for _ in range(4))
        inputs = [x.bfloat16() for x in (q, k + mean, v + mean)]
        figures = []
        for attention in (F.scaled_dot_product_attention, nystrom_attention):
            gradients = []
            for dtype in (torch.bfloat16, torch.float64):
                tensors = [x.detach().to(dtype).requires_grad_() for x in inputs]
                out = attention(*tensors)
                gradients.append(torch.autograd.grad(out, tensors[0], grad.to(dtype))[0])
            figures.append(change(*gradients))
        exact, ours = figures
        what = f"keys and values of mean {mean}: error of the queries' gradient"
        yield f"scaled_dot_product_attention in bfloat16, N = 4,096, {what}", exact
        yield "the same, ours", ours


def main() -> None:
    common.command_line(__doc__).parse_args()
    torch.manual_seed(0)
    rows = [
        {"implementation": subject, "what": what, "figure": figure}
        for subject, measure in [
            (PACKAGE, package_padding),
            (PACKAGE, package_neighbours),
            (PACKAGE, package_half),
            (PACKAGE, package_class_token),
            (TRANSFORMERS, transformers_dense),
            (TRANSFORMERS, transformers_nystrom),
            (TORCH, torch_convolution),
            (TORCH, torch_bfloat16),
        ]
        for what, figure in measure()
    ]
    common.write(rows, common.RESULTS / "differences.csv")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
