"""The steps of the operation by themselves, for a sequence whose parts lie in several processes."""

from __future__ import annotations

from math import e, log2

import torch
from torch import Tensor

from nystromer.backends.triton import gather_backward as backward
from nystromer.backends.triton.call import Call, make_call, on_device_of
from nystromer.backends.triton.gather import gather as gather_sums
from nystromer.backends.triton.operation import triton_forward
from nystromer.pinv import Pinv
from nystromer.registration import empty_as

LOG2_E = log2(e)


class PartOfKeys(Call):
    """The landmarks are not of these keys: few keys are no special case."""

    exact = False


def _call(landmarks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Call:
    call = make_call(key, key, value, mask, mask, None, landmarks.shape[2])
    return PartOfKeys(**vars(call))


def gather(
    landmarks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(s Q~ Kᵀ) V of the keys at hand, [B, H, M, Dv], and log2 of its row sums
    [B, H, M, 1]; where there is no key, anything."""
    if not key.numel():
        nothing = landmarks.new_zeros(*landmarks.shape[:3], value.shape[3] + 1)
        return nothing[..., 1:], nothing[..., :1]
    with on_device_of(key):
        gathered, top, mass = gather_sums(_call(landmarks, key, value, mask), landmarks * scale)
    return gathered, (LOG2_E * top + mass.log2())[..., None]


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

    gathered, log2_mass: of all parts. mean: roughly that of all keys, [B, H, 1, D], in each part
    the same.
    """
    grad_key, grad_value = (empty_as(x, x.shape[3]) for x in (key, value))
    if not key.numel():
        return torch.zeros_like(landmarks), grad_key, grad_value
    call = _call(landmarks, key, value, mask)
    q_scaled, top = landmarks * scale, (log2_mass / LOG2_E)[..., 0].contiguous()
    grad = grad.to(value.dtype)
    bias = (grad.to(gathered.dtype) * gathered).sum(-1)
    share = torch.zeros_like(landmarks)  # the means are not of this step
    with on_device_of(key):
        found = backward.landmarks_gradient(call, q_scaled, top, grad, bias, mean)
        backward.tokens_gradient(
            call, q_scaled, top, grad, bias, share, call.value, grad_key, grad_value
        )
    return scale * found, grad_key, grad_value


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
    return triton_forward(query, keys, values, in_use, query_mask, None, None, None, *settings)[0]
