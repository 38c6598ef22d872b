"""The package nystrom-attention 0.0.14, call for call: replace the import and keep your weights.

    from nystromer.compat.lucidrains import NystromAttention, Nystromformer

Signatures, defaults and state-dict keys are that package's. `mode="legacy"` (default) gives its
numbers and gradients, which trained weights rely on: the sequence is padded on the left with zeros
up to a multiple of M, the zeros are attended to, and the inverse starts from one maximum over the
whole batch. `mode="fixed"` runs the same weights without these defects: any length without padding,
exact attention up to M tokens, no influence between sequences.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nystromer.attention_rows import nystrom_attention_rows, weighted_attention_rows
from nystromer.backends.eager import convolution, factors
from nystromer.checks import check_mask, check_rows
from nystromer.functional import check_backend, nystrom_attention
from nystromer.pinv import Pinv, iterative_pinv
from nystromer.precision import accumulation_dtype, without_autocast

MODES = ("legacy", "fixed")


def moore_penrose_iter_pinv(x: Tensor, iters: int = 6) -> Tensor:
    """Inverts matrices, [..., M, M], as `iterative_pinv` with one start value for all of them."""
    return iterative_pinv(x.reshape(1, -1, *x.shape[-2:]), iters, init="batch").reshape(x.shape)


class NystromAttention(nn.Module):
    r"""Self-attention with the arguments, state-dict keys and (legacy) numbers of the old package.

    Args:
        dim: Features of a token.
        dim_head: D, features of a head.
        heads: H.
        num_landmarks: M.
        pinv_iterations: Steps of the pseudo-inverse.
        residual: Whether to add the depthwise convolution over values.
        residual_conv_kernel: Its kernel size, odd.
        eps: Added to the token count of a landmark (legacy, with a mask).
        dropout: Share of the output's features that are dropped in training.
        mode: "legacy": the old package's numbers. "fixed": no padding, nothing between sequences.
        backend: As `nystrom_attention`; "eager" for second derivatives and per-sample gradients.

    Raises:
        ValueError: If mode is neither, or the backend is unknown.
    """

    shared_sequence: Any = None  # a SharedSequence, of nystromer.distributed.sequence_parallel

    def __init__(
        self,
        dim: int,
        dim_head: int = 64,
        heads: int = 8,
        num_landmarks: int = 256,
        pinv_iterations: int = 6,
        residual: bool = True,
        residual_conv_kernel: int = 33,
        eps: float = 1e-8,
        dropout: float = 0.0,
        *,
        mode: str = "legacy",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"`mode` must be 'legacy' or 'fixed', got {mode!r}.")
        check_backend(backend)
        self.eps, self.mode, self.backend = eps, mode, backend
        self.num_landmarks, self.pinv_iterations = num_landmarks, pinv_iterations
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(dropout))
        self.residual = residual
        if residual:
            kernel, padding = (residual_conv_kernel, 1), (residual_conv_kernel // 2, 0)
            self.res_conv = nn.Conv2d(
                heads, heads, kernel, padding=padding, groups=heads, bias=False
            )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_attn: bool = False,
        return_attn_matrices: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Computes the attention of tokens x, [B, N, dim], and returns as many.

        Args:
            x: Tokens, [B, N, dim].
            mask: Real tokens, bool [B, N] or [1, N].
            return_attn: Also return the attention map, [B, H, P, P]. P is N, in legacy mode rounded
                up to a multiple of M by padding on the left. It warns: `attention_rows` gives any
                rows in O(R N).
            return_attn_matrices: Also return the three factors of the map, [B, H, P, M],
                [B, H, M, M] and [B, H, M, P]. It warns, too.
        """
        q, k, v, padded_mask = self._heads(x, mask)
        if return_attn or return_attn_matrices:
            self._check_whole()
            _warn_of_cost(
                q, None if return_attn and not return_attn_matrices else self.num_landmarks
            )
        tables = None
        if return_attn or return_attn_matrices or self._needs_old_rules(q, mask):
            tables = self._factors(q, k, padded_mask)
        if tables is None or self.mode == "fixed":
            shared = self.shared_sequence
            attend = nystrom_attention if shared is None else shared.attend
            output = attend(
                q,
                k,
                v,
                mask=padded_mask,
                conv_weight=self._taps(),
                backend=self.backend,
                **self._settings(),
            )
        else:
            kernel_1, inverse, kernel_3 = tables
            with without_autocast(x):
                output = ((kernel_1 @ inverse) @ (kernel_3 @ v.to(inverse.dtype))).to(v.dtype)
            taps = self._taps()
            if taps is not None:
                output = output + convolution(v, taps)
        output = self.to_out(output.transpose(1, 2).flatten(2))  # with the padding's dropout
        output = output[:, output.shape[1] - x.shape[1] :]
        if return_attn_matrices and tables is not None:
            return output, tables
        if return_attn and tables is not None:
            return output, tables[0] @ tables[1] @ tables[2]
        return output

    def attention_rows(
        self, x: Tensor, rows: Tensor | Sequence[int], mask: Tensor | None = None
    ) -> Tensor:
        """Returns rows of every head's attention map, [B, H, R, N], in O(R N).

        With rows=[0] it is the row of a class token. Rows and columns count the tokens of x. In
        legacy mode the padding on the left takes its share of every row, and its columns are left
        out.
        """
        self._check_whole()
        n = x.shape[1]
        q, k, _, padded_mask = self._heads(x, mask)
        left = q.shape[2] - n
        rows = check_rows(rows, n, x.device) + left
        if self._needs_old_rules(q, mask):
            kernel_1, inverse, kernel_3 = self._factors(q, k, padded_mask)
            return (kernel_1[:, :, rows] @ inverse @ kernel_3)[..., left:].to(x.dtype)
        settings = self._settings()
        return nystrom_attention_rows(q, k, rows, mask=padded_mask, **settings)[..., left:]

    def weighted_attention_rows(
        self, x: Tensor, weights: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Returns sums of rows of every head's attention map, [B, H, R, N], in O(R N).

        weights: [B, R, N], as the tokens of x, [B, N, dim]. Padding is as in `attention_rows`.
        """
        self._check_whole()
        q, k, _, padded_mask = self._heads(x, mask)
        left = q.shape[2] - x.shape[1]
        weights = F.pad(weights, (left, 0))
        if self._needs_old_rules(q, mask):
            kernel_1, inverse, kernel_3 = self._factors(q, k, padded_mask)
            sums = (weights[:, None].to(inverse.dtype) @ kernel_1) @ inverse @ kernel_3
            return sums[..., left:].to(x.dtype)
        settings = self._settings()
        return weighted_attention_rows(q, k, weights, mask=padded_mask, **settings)[..., left:]

    def check_shareable(self) -> None:
        """Raises ValueError if sequences cannot be cut over processes."""
        if self.mode == "legacy":
            raise ValueError(
                "sequence_parallel needs mode='fixed', got NystromAttention in mode 'legacy', "
                "whose landmarks count the padding of whole sequences."
            )

    def _check_whole(self) -> None:
        if self.shared_sequence is not None:
            raise ValueError(
                "Attention maps need whole sequences, got a model whose sequences are cut by "
                "sequence_parallel; load it anew in one process."
            )

    def _heads(
        self, x: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns Q, K and V, each [B, H, P, D], and the mask, [B, P]."""
        if isinstance(mask, Tensor) and mask.shape == (1, x.shape[1]):
            mask = mask.expand(x.shape[0], -1)
        check_mask("mask", mask, (x.shape[0], x.shape[1]), x.device)
        left = -x.shape[1] % self.num_landmarks if self.mode == "legacy" else 0
        qkv = self.to_qkv(x)
        if left:  # zeros before the projection are zeros after it: it has no bias
            qkv = torch.cat([qkv.new_zeros(len(qkv), left, qkv.shape[2]), qkv], 1)
            mask = mask if mask is None else F.pad(mask, (left, 0), value=False)
        q, k, v = qkv.chunk(3, dim=-1)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if mask is not None:
            q, k, v = (t.masked_fill(~mask[:, None, :, None], 0.0) for t in (q, k, v))
        return q, k, v, mask

    def _needs_old_rules(self, q: Tensor, mask: Tensor | None) -> bool:
        """Returns whether legacy numbers are not those of `nystrom_attention` after padding."""
        return self.mode == "legacy" and (mask is not None or q.shape[2] <= self.num_landmarks)

    def _settings(self) -> dict[str, Any]:
        return {
            "num_landmarks": self.num_landmarks,
            "scale": self.scale,
            "pinv_iterations": self.pinv_iterations,
            "pinv_init": self._pinv_init(),
        }

    def _pinv_init(self) -> str:
        return "batch" if self.mode == "legacy" else "sequence"

    def _taps(self) -> Tensor | None:
        return self.res_conv.weight[:, 0, :, 0] if self.residual else None

    def _factors(self, q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the three factors of the attention map, by the rules of the mode."""
        dtype = accumulation_dtype(q.dtype)
        q, k = q.to(dtype), k.to(dtype)
        with without_autocast(q):
            if self.mode == "fixed":
                pinv = Pinv(self.pinv_iterations, self._pinv_init())
                sizes = {"num_landmarks": self.num_landmarks, "scale": self.scale}
                return factors(q, k, mask=mask, query_mask=mask, pinv=pinv, **sizes)
            return self._legacy_factors(q, k, mask)

    def _legacy_factors(
        self, q: Tensor, k: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the factors by the old rules.

        Segments of the padded sequence are equal, and a landmark is the mean of its real tokens. A
        row without real tokens is uniform, and a column without them is hidden.
        """
        shape = (self.num_landmarks, -1)
        q_sum, k_sum = (t.unflatten(2, shape).sum(3) for t in (self.scale * q, k))
        if mask is None:
            count: Tensor | float = q.shape[2] / self.num_landmarks
            real = filled = None
        else:
            counts = mask.unflatten(1, shape).sum(2)  # [B, M]
            count = counts[:, None, :, None] + self.eps
            real, filled = mask[:, None], (counts > 0)[:, None]  # [B, 1, P], [B, 1, M]
        q_tilde, k_tilde = q_sum / count, k_sum / count
        kernel_1 = _legacy_softmax(self.scale * q @ k_tilde.mT, real, filled)
        kernel_2 = _legacy_softmax(q_tilde @ k_tilde.mT, filled, filled)
        kernel_3 = _legacy_softmax(q_tilde @ k.mT, filled, real)
        return kernel_1, moore_penrose_iter_pinv(kernel_2, self.pinv_iterations), kernel_3


class PreNorm(nn.Module):
    """A layer that reads its input after a layer norm."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Tensor | None) -> Tensor:
        return self.fn(self.norm(x), **kwargs)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, over each token."""

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, dim * mult), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim * mult, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Nystromformer(nn.Module):
    """A stack of `depth` blocks: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        dim_head: int = 64,
        heads: int = 8,
        num_landmarks: int = 256,
        pinv_iterations: int = 6,
        attn_values_residual: bool = True,
        attn_values_residual_conv_kernel: int = 33,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        mode: str = "legacy",
        backend: str = "auto",
    ) -> None:
        super().__init__()

        def block() -> nn.ModuleList:
            attention = NystromAttention(
                dim,
                dim_head,
                heads,
                num_landmarks,
                pinv_iterations,
                attn_values_residual,
                attn_values_residual_conv_kernel,
                dropout=attn_dropout,
                mode=mode,
                backend=backend,
            )
            feed_forward = FeedForward(dim, dropout=ff_dropout)
            return nn.ModuleList([PreNorm(dim, attention), PreNorm(dim, feed_forward)])

        self.layers = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Runs all blocks on tokens x, [B, N, dim]; mask, bool [B, N], is True at real tokens."""
        for block in self.layers:
            attention, feed_forward = block.children()
            x = attention(x, mask=mask) + x
            x = feed_forward(x) + x
        return x


Nystromer = Nystromformer


def _legacy_softmax(logits: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Returns the softmax over real columns in real rows, and uniform rows elsewhere.

    rows: Which rows are real, [B, 1, R]. columns: Which columns are, [B, 1, C].
    """
    if rows is not None and columns is not None:
        hidden = ~(rows[..., :, None] & columns[..., None, :])
        logits = logits.masked_fill(hidden, -torch.finfo(logits.dtype).max)
    return logits.softmax(-1)


def _warn_of_cost(q: Tensor, num_landmarks: int | None) -> None:
    """Warns how many bytes of attention are kept: the map, or with num_landmarks its factors."""
    batch, heads, n, _ = q.shape
    name, columns = (
        ("return_attn", n) if num_landmarks is None else ("return_attn_matrices", 2 * num_landmarks)
    )
    gigabytes = batch * heads * n * columns * q.element_size() / 1e9
    warnings.warn(
        f"{name}=True keeps {gigabytes:.1f} GB of attention for N = {n}; attention_rows(x, rows) "
        "gives single rows, a class token's for instance, in O(R N).",
        stacklevel=3,
    )
