"""The front door: check, choose a backend, call it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from nystromer.backends import blocked, eager, native, triton
from nystromer.checks import (
    check_conv_weight,
    check_landmarks,
    check_pinv,
    check_positive,
    check_query_key,
    check_value,
    is_packed,
    softmax_scale,
)
from nystromer.layout import (
    at_most_tokens,
    batched,
    batched_landmarks,
    batched_mask,
    repeat_heads,
    unbatched,
)
from nystromer.packed import from_jagged, is_nested, like_jagged, longest_sequence, padded
from nystromer.pinv import Pinv
from nystromer.precision import autocast_inputs, without_autocast
from nystromer.registration import differentiated_anew, must_be_of_torch_alone, only_backward

BACKENDS: dict[str, ModuleType] = {
    "eager": eager,
    "blocked": blocked,
    "native": native,
    "triton": triton,
}
PACKED = (blocked, native)  # run packed sequences where they lie; the others get a padded batch


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_landmarks: int = 64,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: str = "matrix",
    pinv_ridge: float | None = None,
    conv_weight: Tensor | None = None,
    landmarks: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    r"""softmax(s Q K~ᵀ) · (softmax(s Q~ K~ᵀ)⁺ · (softmax(s Q~ Kᵀ) · V)) [+ conv(V)], in O(N).

    Two ordinary attentions around one small matrix: M landmark queries Q~ gather from all keys, the
    pseudo-inverse of the landmarks' own M x M attention map mixes what they gathered, and all
    queries read it through the landmark keys K~ (eq. 15 and 17, Algorithm 1). An output never
    depends on padding or on the rest of the batch.

    A sequence of at most M real tokens gets exact softmax attention (Lemma 2), whatever stands
    beside it in the batch.

    Logits, softmax and the inverse are computed in float32 (float64 for float64 inputs), also under
    autocast, which only casts the inputs, as it does for scaled_dot_product_attention.

    Sequences of different lengths are a batch with a mask, a jagged nested tensor [B, H, j, D]
    (the result is one too, ragged as the query is), or packed: `nystrom_attention_varlen`.

    Args:
        query: Q, [B, H, Nq, D], float16, bfloat16, float32 or float64. As in
            scaled_dot_product_attention B and H may be left out, or B be several dimensions; masks
            and landmarks then do as query, key and value do.
        key: K, [B, H, Nk, D].
        value: V, [B, H, Nk, Dv].
        num_landmarks: M, at least 1; more than there are tokens are as many as there are. Ignored
            where `landmarks` are given, which bring their own M.
        mask: Real tokens among the keys, bool [B, Nk], any pattern; None means all. (The opposite
            sense of torch's `key_padding_mask`.)
        query_mask: Real tokens among the queries, bool [B, Nq]; outputs elsewhere are zero.
            Defaults to `mask` when Nq = Nk, else to all.
        scale: s, 1/sqrt(D) if None.
        pinv_iterations: Steps of the inverse (eq. 14). Six act as a regulariser that weights are
            trained with; more are not better.
        pinv_init: "matrix", "sequence" (published weights) or "batch" (published code, where a
            sequence changes its neighbours); see `nystromer.pinv.pinv_start`.
        pinv_ridge: r: (AᵀA + r I)⁻¹ Aᵀ in place of the steps, for encoders converted without
            training; see `nystromer.pinv.ridge_pinv`. None: the steps.
        conv_weight: [H, K], odd K: taps of a depthwise convolution over V along the sequence, one
            filter a head, added to the output. Self-attention only.
        landmarks: (Q~, K~), each [B, H, M, D], from any scheme (see `nystromer.landmarks`); None
            means segment means. Gradients flow into them.
        backend: "eager" (the equations as written), "blocked" (no N x M table kept, forward or
            backward), "native" (the same as one call into C++, on CPUs, float32 and bfloat16),
            "triton" (fused kernels, on GPUs) or "auto". An explicit choice never falls back.
        is_causal: Must be False: a segment mean sees the future.
        enable_gqa: Whether key and value may have fewer heads than query, a number that divides H;
            each serves the H / Hk query heads beside one another. `conv_weight` is of query heads.

    Returns:
        [B, H, Nq, Dv], dtype of `value`.

    Raises:
        TypeError: If an input is not a tensor of one of the four dtypes, or a count is not an int.
        ValueError: If shapes, dtypes or devices disagree, a mask is not bool [B, N], a count is
            below 1, an option is unknown, is_causal is set, or a nested tensor is not jagged or has
            masks or landmarks beside it.
        NotImplementedError: If the backend named cannot run this case.

    Source: Xiong et al. 2021, arXiv:2102.03902.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 8, 1000, 64)  # each [B, H, N, D]
        >>> nystrom_attention(q, k, v, num_landmarks=64).shape
        torch.Size([2, 8, 1000, 64])
    """
    if is_causal:
        raise ValueError(
            "is_causal=True is impossible with Nyström attention, got a causal call: a landmark is "
            "the mean of a whole segment and sees the future; use scaled_dot_product_attention."
        )
    settings: dict[str, Any] = {
        "num_landmarks": num_landmarks,
        "scale": scale,
        "pinv": Pinv(pinv_iterations, pinv_init, pinv_ridge),
        "conv_weight": conv_weight,
        "backend": backend,
        "enable_gqa": enable_gqa,
    }
    if is_nested(query, key, value):
        for name, given in (("mask", mask), ("query_mask", query_mask), ("landmarks", landmarks)):
            if given is not None:
                raise ValueError(f"`{name}` cannot be given beside nested tensors; leave it out.")
        if conv_weight is not None and query.shape[2] != key.shape[2]:
            raise ValueError(
                "`conv_weight` needs self-attention (it adds neighbouring values to a token's "
                "output), got nested queries and keys of different lengths; leave it out."
            )
        q, k, v, query_bounds, bounds = from_jagged(query, key, value)
        output = attend(q, k, v, mask=bounds, query_mask=query_bounds, **settings)
        return like_jagged(output, query)
    q, k, v = batched(query=query, key=key, value=value)
    mask = batched_mask("mask", mask, key)
    query_mask = batched_mask("query_mask", query_mask, query)
    if query_mask is None and q.shape[2] == k.shape[2]:
        query_mask = mask
    settings["landmarks"] = batched_landmarks(landmarks, query)
    output = attend(q, k, v, mask=mask, query_mask=query_mask, **settings)
    return unbatched(output, query)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    query_mask: Tensor | None,
    num_landmarks: int,
    scale: float | None,
    pinv: Pinv,
    conv_weight: Tensor | None,
    backend: str,
    enable_gqa: bool,
    landmarks: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Checks what a batch [B, H, N, D] and packed sequences [1, H, T, D] have in common, chooses
    the backend and calls it. Masks are bool [B, N], or the bounds of the sequences, int [S + 1]."""
    query, key, value, conv_weight = autocast_inputs(query, key, value, conv_weight)
    if enable_gqa:
        key, value = repeat_heads(key, "key", query), repeat_heads(value, "value", query)
    check_query_key(query, key)
    check_value(key, value)
    check_positive("num_landmarks", num_landmarks)
    check_pinv(*pinv)
    check_conv_weight(conv_weight, query, key)
    check_landmarks(landmarks, query)
    if landmarks is not None:
        num_landmarks = landmarks[0].shape[2]
    elif mask is not None and query_mask is not None and is_packed(mask):
        sides = ((query_mask, query), (mask, key))
        longest = (longest_sequence(bounds, x.shape[2]) for bounds, x in sides)
        num_landmarks = at_most_tokens(num_landmarks, *longest)
    else:
        num_landmarks = at_most_tokens(num_landmarks, query.shape[2], key.shape[2])
    with without_autocast(query):
        chosen = choose_backend(backend, query, key, value, num_landmarks)
        forward: Callable[..., Tensor] = chosen.forward
        if is_packed(mask) and chosen not in PACKED:
            forward = partial(padded, forward)
        return forward(
            query,
            key,
            value,
            num_landmarks=num_landmarks,
            mask=mask,
            query_mask=query_mask,
            scale=softmax_scale(scale, query),
            pinv=pinv,
            conv_weight=conv_weight,
            landmarks=landmarks,
        )


def choose_backend(
    name: str, query: Tensor, key: Tensor, value: Tensor, num_landmarks: int
) -> ModuleType:
    """The backend of that name; "auto": native where it can run, else blocked, but eager for what
    only eager can differentiate, and for graphs that other runtimes shall read.

    triton is proven under its interpreter and has not run on a GPU: it is chosen by name only.

    Raises:
        ValueError: If there is no backend of that name.
        NotImplementedError: If the backend named cannot run this case.
    """
    check_backend(name)
    case = (query, key, value, num_landmarks)
    if name == "auto":
        if differentiated_anew() or must_be_of_torch_alone():
            return eager
        return blocked if native.unsupported(*case) else native
    if name != "eager" and differentiated_anew():
        raise NotImplementedError(only_backward(name))
    reason = BACKENDS[name].unsupported(*case)
    if reason is not None:
        instead = "eager" if name == "blocked" else "blocked"
        raise NotImplementedError(f"backend={name!r} {reason}; use backend={instead!r}.")
    return BACKENDS[name]


def check_backend(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        known = ", ".join(map(repr, ("auto", *BACKENDS)))
        raise ValueError(f"`backend` must be one of {known}, got {name!r}.")
