"""What the public functions refuse: what came, why it is wrong, what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from numbers import Real

import torch.fx
from torch import Tensor

from nystromer.pinv import NORM_DIMS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LEAST_RIDGE = 1e-10  # of float32 matrices: what is below is their rounding


def check_positive(name: str, value: int) -> None:
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an int, got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def check_kernel_size(name: str, size: int) -> None:
    check_positive(name, size)
    if size % 2 == 0:
        raise ValueError(
            f"`{name}` must be odd, got {size}; an odd kernel stays centred on its token."
        )


def softmax_scale(scale: float | None, query: Tensor) -> float:
    """scale, or 1/sqrt(D).

    Raises:
        TypeError: If it is not a number.
    """
    if scale is None:
        return max(1, query.shape[-1]) ** -0.5
    if not isinstance(scale, (Real, torch.SymFloat)) or isinstance(scale, bool):
        raise TypeError(
            f"`scale` must be a number, got {type(scale).__name__}; multiply query by a "
            "learned one."
        )
    return scale


def check_mask(
    name: str, mask: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> None:
    if mask is None:
        return
    letters = "[N]" if len(shape) == 1 else "[B, N]"
    if not isinstance(mask, Tensor):
        raise TypeError(f"`{name}` must be a bool tensor {letters}, got {type(mask).__name__}.")
    if mask.dtype != torch.bool:
        raise ValueError(
            f"`{name}` must be bool with True at real tokens, got {mask.dtype}; "
            f"write {name}={name}.bool() if nonzero marks a real token."
        )
    if tuple(mask.shape) != shape:
        hint = "."
        if len(shape) == 2 and tuple(mask.shape) == (shape[0], 1, 1, shape[1]):
            hint = f"; write {name}={name}[:, 0, 0]."
        elif mask.dim() > len(shape) or tuple(mask.shape[-2:]) == (shape[-1], shape[-1]):
            hint = (
                "; a mask of query-key pairs (a causal one, say) is impossible here, since a "
                "landmark or cluster mixes tokens from everywhere: use "
                "scaled_dot_product_attention for it."
            )
        raise ValueError(
            f"`{name}` must have shape {letters} = {list(shape)}, got {list(mask.shape)}{hint}"
        )
    if mask.device != device:
        raise ValueError(f"`{name}` is on {mask.device}, the tokens on {device}; move one of them.")


def is_packed(mask: Tensor | None) -> bool:
    """Whether the place of a mask holds the bounds of packed sequences, int [S + 1]."""
    return mask is not None and mask.dtype != torch.bool


def check_cu_seqlens(name: str, bounds: Tensor, device: torch.device) -> None:
    if not isinstance(bounds, Tensor):
        raise TypeError(f"`{name}` must be an int tensor [S + 1], got {type(bounds).__name__}.")
    if bounds.dtype not in (torch.int32, torch.int64) or bounds.dim() != 1 or bounds.shape[0] == 0:
        raise ValueError(
            f"`{name}` must be int32 or int64 [S + 1], the bounds of S sequences, got "
            f"{bounds.dtype} {list(bounds.shape)}."
        )
    if bounds.device != device:
        raise ValueError(
            f"`{name}` is on {bounds.device}, the tokens on {device}; move one of them."
        )


def packed_lengths(name: str, bounds: Tensor, total: int) -> list[int]:
    """The lengths of packed sequences, from their bounds [S + 1] and T. Reads them on the host."""
    values = bounds.tolist()
    lengths = [stop - start for start, stop in pairwise(values)]
    if values[0] != 0 or values[-1] != total or min(lengths, default=0) < 0:
        shown = values if len(values) < 8 else [*values[:3], "...", *values[-3:]]
        raise ValueError(
            f"`{name}` must go from 0 to the number of tokens, {total}, got "
            f"[{', '.join(map(str, shown))}]; write the cumulative sum of the lengths behind a 0."
        )
    return lengths


def check_query_key(query: Tensor, key: Tensor) -> None:
    _check_tokens(query=query, key=key)
    if query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3]:
        raise ValueError(
            "`query` [B, H, Nq, D] and `key` [B, H, Nk, D] must agree in B, H and D, got "
            f"{list(query.shape)} and {list(key.shape)}; write enable_gqa=True if every key head "
            "serves several query heads."
        )


def check_value(key: Tensor, value: Tensor) -> None:
    _check_tokens(key=key, value=value)
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(
            "`key` [B, H, Nk, D] and `value` [B, H, Nk, Dv] must agree in B, H and Nk, got "
            f"{list(key.shape)} and {list(value.shape)}."
        )


def check_tensor(name: str, x: Tensor) -> None:
    if isinstance(x, torch.fx.Proxy):
        raise TypeError(
            "torch.fx.symbolic_trace cannot look into attention, which decides by shapes, got a "
            f"proxy for `{name}`; write torch.fx.wrap with its name beside its import, or use "
            "torch.export."
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(x).__name__}.")
    if x.is_nested:
        raise ValueError(
            f"`{name}` is a nested tensor, which only nystrom_attention takes; write "
            f"torch.nested.to_padded_tensor({name}, 0.0) and give the mask of its tokens."
        )
    check_dtype(name, x)


def check_dtype(name: str, x: Tensor) -> None:
    """Refuses float8 and its like, which torch has no products of."""
    if x.is_floating_point() and x.dtype not in DTYPES:
        raise TypeError(
            f"`{name}` must be float16, bfloat16, float32 or float64, got {x.dtype}; write "
            f"{name}.bfloat16()."
        )


def check_pinv(iterations: int, init: str, ridge: float | None = None) -> None:
    check_positive("pinv_iterations", iterations)
    if not isinstance(init, str) or init not in NORM_DIMS:
        known = ", ".join(map(repr, NORM_DIMS))
        raise ValueError(f"`pinv_init` must be one of {known}, got {init!r}.")
    if ridge is not None and not (isinstance(ridge, Real) and LEAST_RIDGE <= ridge < inf):
        raise ValueError(
            f"`pinv_ridge` must be a number of at least {LEAST_RIDGE:g}, got {ridge!r}; 0.01 is "
            "near the best for trained encoders, None takes the steps of eq. 14."
        )


def check_conv_weight(weight: Tensor | None, query: Tensor, key: Tensor) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"`conv_weight` must be a tensor [H, K], got {type(weight).__name__}.")
    heads = query.shape[1]
    if weight.dim() != 2 or weight.shape[0] != heads or weight.shape[1] % 2 == 0:
        raise ValueError(
            f"`conv_weight` must be [H, K] = [{heads}, odd], got {list(weight.shape)}; an odd K "
            "keeps the convolution centred on its token."
        )
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            "`conv_weight` needs self-attention (it adds neighbouring values to a token's output), "
            f"got {query.shape[2]} queries and {key.shape[2]} keys; leave it out."
        )
    _check_alike(query=query, conv_weight=weight)


def check_landmarks(landmarks: tuple[Tensor, Tensor] | None, query: Tensor) -> None:
    if landmarks is None:
        return
    if not isinstance(landmarks, (tuple, list)) or len(landmarks) != 2:
        raise TypeError("`landmarks` must be a pair (query_landmarks, key_landmarks).")
    batch, heads, _, dim = query.shape
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in landmarks]
    m = landmarks[0].shape[2] if isinstance(shapes[0], tuple) and len(shapes[0]) == 4 else 0
    if m < 1 or shapes != [(batch, heads, m, dim)] * 2:
        raise ValueError(
            f"`landmarks` must be two tensors [B, H, M, D] = [{batch}, {heads}, M, {dim}] with the "
            f"same M, got {shapes[0]} and {shapes[1]}; the schemes of nystromer.landmarks return "
            "(landmarks, counts): pass the first of each."
        )
    for x in landmarks:
        check_dtype("landmarks", x)
        if not x.is_floating_point() or x.device != query.device:
            raise ValueError(
                f"`landmarks` must be floating point on {query.device}, got {x.dtype} on "
                f"{x.device}."
            )


def check_rows(rows: Tensor | Sequence[int], n: int, device: torch.device) -> Tensor:
    """rows as a tensor [R] on the device. torch.compile and torch.export see no tensor's values."""
    values: Tensor | Sequence[int] = rows
    if not isinstance(rows, Tensor):
        try:
            given = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"`rows` must be a list of ints or an int tensor [R], got {rows!r}."
            ) from None
        rows = given if given.numel() else given.long()
    elif torch.compiler.is_compiling():
        values = ()
    rows = rows.to(device)
    if rows.dtype not in (torch.int32, torch.int64) or rows.dim() != 1:
        raise ValueError(
            f"`rows` must be a list of ints or an int tensor [R], got {rows.dtype} of shape "
            f"{list(rows.shape)}."
        )
    if len(values):
        least, largest = (
            (int(values.min()), int(values.max()))
            if isinstance(values, Tensor)
            else (min(values), max(values))
        )
        if least < 0 or largest >= n:
            raise ValueError(
                f"`rows` must lie in 0 ... {n - 1} (N = {n} queries), got {least} ... {largest}."
            )
    return rows


def _check_tokens(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        check_tensor(name, x)
        if x.dim() != 4:
            raise ValueError(
                f"`{name}` must be [B, H, N, D], got {x.dim()} dimensions {list(x.shape)}."
            )
        if not x.is_floating_point():
            raise TypeError(
                f"`{name}` must be floating point, got {x.dtype}; write {name}.float()."
            )
    _check_alike(**tensors)


def _check_alike(**tensors: Tensor) -> None:
    for what in ("dtype", "device"):
        seen = {name: getattr(x, what) for name, x in tensors.items()}
        if len(set(seen.values())) > 1:
            listed = ", ".join(f"`{name}` {value}" for name, value in seen.items())
            raise ValueError(f"All inputs must share one {what}, got {listed}.")
