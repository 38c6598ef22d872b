"""From the layouts that callers hold to [B, H, N, D], and back: leading dimensions, grouped heads.

Shapes: B sequences, H heads, N tokens, D features.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from nystromer.checks import check_mask, check_query_key, check_tensor
from nystromer.precision import autocast_inputs
from nystromer.registration import is_traced


def batched(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors [..., H, N, D] as [B, H, N, D]: [H, N, D] is a batch of one, [N, D] of one head too.

    Raises:
        TypeError: If one is no tensor.
        ValueError: If one has fewer than two dimensions, or more or fewer than the others.
    """
    for name, x in tensors.items():
        check_tensor(name, x)
    dims = {name: x.dim() for name, x in tensors.items()}
    if min(dims.values()) < 2 or len(set(dims.values())) > 1:
        listed = ", ".join(f"`{name}` {list(x.shape)}" for name, x in tensors.items())
        raise ValueError(
            f"All inputs must be [B, H, N, D], or all [H, N, D] or [N, D], got {listed}."
        )
    return tuple(map(_batched, tensors.values()))


def _batched(x: Tensor) -> Tensor:
    while x.dim() < 4:
        x = x[None]
    return x if x.dim() == 4 else x.flatten(0, -4)


def batched_landmarks(
    landmarks: tuple[Tensor, Tensor] | None, x: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The landmarks [..., H, M, D] of x [..., H, N, D] as [B, H, M, D]; not checked."""
    if x.dim() == 4 or not isinstance(landmarks, (tuple, list)):
        return landmarks
    given = [_batched(x) if isinstance(x, Tensor) else x for x in landmarks]
    return tuple(given)  # type: ignore[return-value]


def batched_mask(name: str, mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask [..., N] of x [..., H, N, D], checked, as [B, N]."""
    leading, n = x.shape[:-3], x.shape[-2]
    check_mask(name, mask, (*leading, n), x.device)
    if mask is None or mask.dim() == 2:
        return mask
    return mask.reshape(prod(leading), n)


def unbatched(output: Tensor, x: Tensor) -> Tensor:
    """The output [B, H, N, D] with the leading dimensions of x, [..., H, N, D]."""
    if x.dim() == 4:
        return output
    return output.reshape(*x.shape[:-2], *output.shape[2:])


def repeat_heads(x: Tensor, name: str, query: Tensor) -> Tensor:
    """Key or value heads, each repeated for the H / Hk query heads that it serves: [B, H, N, D].

    Raises:
        ValueError: If Hk does not divide H.
    """
    heads, given = query.shape[1], x.shape[1]
    if heads == given:
        return x
    if given == 0 or heads % given:
        raise ValueError(
            f"enable_gqa=True needs a number of `{name}` heads that divides the {heads} query "
            f"heads, got {given}."
        )
    return x.repeat_interleave(heads // given, 1)


def at_most_tokens(num_landmarks: int, *lengths: int) -> int:
    """M, but no more than there are tokens: attention is exact from there on, whatever M is.

    Where a graph is traced it stays M, for lengths may change afterwards.
    """
    if is_traced():
        return num_landmarks
    return max(1, min(num_landmarks, max(lengths)))


def map_inputs(
    query: Tensor, key: Tensor, mask: Tensor | None, enable_gqa: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What rows of an attention map need: queries and keys [B, H, N, D] as autocast wants them, and
    the mask of the keys, [B, Nk]."""
    q, k = batched(query=query, key=key)
    mask = batched_mask("mask", mask, key)
    q, k = autocast_inputs(q, k)
    if enable_gqa:
        k = repeat_heads(k, "key", q)
    check_query_key(q, k)
    return q, k, mask
