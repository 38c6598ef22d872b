"""NystromAttention: the operation with its projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.fx
from torch import Tensor, nn

from nystromer.attention_rows import nystrom_attention_rows
from nystromer.checks import check_dtype, check_kernel_size, check_positive
from nystromer.functional import check_backend, nystrom_attention

if TYPE_CHECKING:
    from nystromer.distributed import SharedSequence


def check_features(x: Tensor, features: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a tensor [B, N, E], got {type(x).__name__}.")
    if x.is_nested and x.layout != torch.jagged:
        raise ValueError(
            f"`x` is a nested tensor of layout {x.layout}; write "
            "torch.nested.nested_tensor(sequences, layout=torch.jagged)."
        )
    if x.dim() < 2 or x.shape[-1] != features:
        raise ValueError(f"`x` must be [B, N, E] with E = {features}, got {list(x.shape)}.")
    check_dtype("x", x)


# torch.fx.symbolic_trace takes both as they are: they decide by shapes, which it does not know.
torch.fx.wrap("check_features")
torch.fx.wrap("nystrom_attention")


class NystromAttention(nn.Module):
    r"""Multi-head self-attention in O(N): project to Q, K, V, attend, project back, drop out.

    output = dropout(W_o · concat_heads(nystrom_attention(x W_q, x W_k, x W_v)) + b_o)

    Args:
        embed_dim: E, features of a token.
        num_heads: H.
        head_dim: D, features of a head; embed_dim // num_heads if None.
        num_landmarks: M. A sequence of at most M real tokens gets exact attention.
        conv_kernel_size: K, odd: the depthwise convolution over values that the paper adds to the
            output; None leaves it out.
        pinv_iterations: Steps of the pseudo-inverse.
        dropout: On the output (the factors of the attention have no room for one).
        bias: In the four projections.
        backend: As `nystrom_attention`.

    Raises:
        ValueError: If a size is below 1, embed_dim is not divisible by num_heads (with head_dim
            None), conv_kernel_size is even, or the backend is unknown.

    Example:
        >>> attention = NystromAttention(embed_dim=256, num_heads=4, num_landmarks=32)
        >>> x, mask = torch.randn(2, 3000, 256), torch.ones(2, 3000, dtype=torch.bool)
        >>> attention(x, mask).shape, attention.attention_rows(x, rows=[0]).shape
        (torch.Size([2, 3000, 256]), torch.Size([2, 4, 1, 3000]))
    """

    shared_sequence: SharedSequence | None = None  # set by nystromer.distributed.sequence_parallel

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        num_landmarks: int = 64,
        conv_kernel_size: int | None = 33,
        pinv_iterations: int = 6,
        dropout: float = 0.0,
        bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_positive("embed_dim", embed_dim)
        check_positive("num_heads", num_heads)
        check_positive("num_landmarks", num_landmarks)
        check_positive("pinv_iterations", pinv_iterations)
        check_backend(backend)
        if head_dim is None:
            if embed_dim % num_heads:
                raise ValueError(
                    f"`embed_dim` must be a multiple of num_heads={num_heads}, got {embed_dim}; "
                    "or name a `head_dim`."
                )
            head_dim = embed_dim // num_heads
        check_positive("head_dim", head_dim)
        self.num_heads, self.head_dim, self.num_landmarks = num_heads, head_dim, num_landmarks
        self.pinv_iterations, self.backend = pinv_iterations, backend
        inner_dim = num_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, inner_dim, bias=bias)
        self.k_proj = nn.Linear(embed_dim, inner_dim, bias=bias)
        self.v_proj = nn.Linear(embed_dim, inner_dim, bias=bias)
        self.out_proj = nn.Linear(inner_dim, embed_dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.conv_weight: nn.Parameter | None = None
        if conv_kernel_size is not None:
            check_kernel_size("conv_kernel_size", conv_kernel_size)
            bound = conv_kernel_size**-0.5  # as nn.Conv2d starts a depthwise filter
            taps = torch.empty(num_heads, conv_kernel_size).uniform_(-bound, bound)
            self.conv_weight = nn.Parameter(taps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, E]; mask: real tokens, bool [B, N], or None. Returns [B, N, E].

        At padding the attention's output is zero, so the result there is the output bias. One
        sequence may be [N, E], with a mask [N]; sequences of different lengths may be a nested
        tensor [B, j, E] of layout torch.jagged, without a mask: the result is one of the same
        lengths, to be added to x.
        """
        attend = nystrom_attention if self.shared_sequence is None else self.shared_sequence.attend
        output = attend(
            self._heads(self.q_proj, x),
            self._heads(self.k_proj, x),
            self._heads(self.v_proj, x),
            num_landmarks=self.num_landmarks,
            mask=mask,
            pinv_iterations=self.pinv_iterations,
            conv_weight=self.conv_weight,
            backend=self.backend,
        )
        return self.dropout(self.out_proj(output.transpose(-3, -2).flatten(-2)))

    def attention_rows(
        self, x: Tensor, rows: Tensor | Sequence[int], mask: Tensor | None = None
    ) -> Tensor:
        """Rows of the approximate attention map of every head, [B, H, R, N]; see
        `nystrom_attention_rows`. x: [B, N, E] or [N, E]; rows: positions, [R]; mask: bool [B, N],
        [N] or None."""
        shared = self.shared_sequence
        rows_of = nystrom_attention_rows if shared is None else shared.attention_rows
        return rows_of(
            self._heads(self.q_proj, x),
            self._heads(self.k_proj, x),
            rows,
            num_landmarks=self.num_landmarks,
            mask=mask,
            pinv_iterations=self.pinv_iterations,
        )

    def _heads(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, H, N, D]"""
        check_features(x, projection.in_features)
        return projection(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def __prepare_scriptable__(self) -> nn.Module:  # what torch.jit.script asks for
        raise NotImplementedError(
            "torch.jit.script cannot compile NystromAttention, whose operation is Python; use "
            "torch.compile or torch.export."
        )

    def extra_repr(self) -> str:
        sizes = f"num_heads={self.num_heads}, head_dim={self.head_dim}"
        return f"{sizes}, num_landmarks={self.num_landmarks}"
