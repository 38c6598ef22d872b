"""The steps of the operation by themselves, for a sequence whose parts lie in several processes."""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.backends.native import library
from nystromer.backends.native.operation import call_for, native_forward
from nystromer.pinv import Pinv
from nystromer.registration import empty_as

QUERIES = 2  # `Given` in source/call.h
NO_INVERSE = (1, "matrix", None)


def gather(
    landmarks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(s Q~ Kᵀ) V of the keys at hand, [B, H, M, Dv], and log2 of its row sums
    [B, H, M, 1]; where there is no key, anything."""
    gathered = landmarks.new_zeros(*landmarks.shape[:3], value.shape[3])
    log2_mass = landmarks.new_zeros(*landmarks.shape[:3], 1)
    call, kept = _gather_call(landmarks, key, value, mask, scale, gathered, log2_mass, gathered)
    library.run("forward", call)
    del kept
    return gathered, log2_mass


def gather_backward(
    grad: Tensor,
    landmarks: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    gathered: Tensor,
    log2_mass: Tensor,
    mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of landmarks, key and value, of what was gathered from the keys of all parts.

    gathered, log2_mass: of all parts. mean: unused, for all sums are in float32.
    """
    gathered, log2_mass = gathered.contiguous(), log2_mass.contiguous()
    call, kept = _gather_call(landmarks, key, value, mask, scale, gathered, log2_mass, grad)
    grad_query = torch.empty_like(kept[0])  # of the tokens' dtype: read by nobody
    grad_key, grad_value = (empty_as(x, x.shape[3]) for x in (key, value))
    grad_landmarks, of_k_tilde = torch.zeros_like(landmarks), torch.zeros_like(landmarks)
    call.grad_query, call.grad_key, call.grad_value = map(
        library.tensor, (grad_query, grad_key, grad_value)
    )
    call.grad_q_tilde, call.grad_k_tilde = grad_landmarks.data_ptr(), of_k_tilde.data_ptr()
    library.run("backward", call)
    del kept
    return grad_landmarks, grad_key, grad_value


def _gather_call(
    landmarks: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    gathered: Tensor,
    log2_mass: Tensor,
    output: Tensor,
) -> tuple[library.Call, list[Tensor]]:
    """The call, and what must outlive it; `landmarks` is [B, H, M, D], contiguous float32.

    output: in the place of the queries' output, what they gathered, or its gradient.
    """
    queries = key.new_empty(landmarks.shape)  # of the dtype of all tokens; read by nobody
    output = output.to(key.dtype, copy=True)
    unused = [torch.zeros_like(x) for x in (landmarks, gathered)]
    small = [landmarks, unused[0], gathered, unused[1], log2_mass]
    pinv = (scale, *NO_INVERSE)
    call = call_for(queries, key, value, (mask, None), output, small, None, pinv)
    call.landmarks_given = QUERIES
    return call, [queries, output, *unused]


def scatter(
    query: Tensor,
    landmarks: Tensor,
    context: Tensor,
    in_use: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(s Q K~ᵀ) · context over the landmarks in use, bool [B, M]: [B, H, Nq, Dv]."""
    keys, values = landmarks.to(query.dtype), context.to(query.dtype)
    settings = (landmarks.shape[2], scale, *Pinv())  # no inverse: M keys are few
    return native_forward(query, keys, values, in_use, query_mask, None, None, None, *settings)[0]
