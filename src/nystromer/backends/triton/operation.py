"""The forward and the backward over a batch, as operations for autograd and torch.compile."""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
from typing import NamedTuple

from torch import Tensor

from nystromer.backends.triton import gather_backward, scatter_backward
from nystromer.backends.triton.call import make_call, on_device_of, with_unit_stride
from nystromer.backends.triton.convolution import taps_gradient
from nystromer.backends.triton.gather import gather
from nystromer.backends.triton.inverse import invert, invert_backward
from nystromer.backends.triton.scatter import scatter
from nystromer.pinv import Pinv
from nystromer.precision import accumulation_dtype, centred
from nystromer.registration import (
    empty_as,
    make_differentiable,
    new_gradients,
    operation,
    shapes_of,
)


class Small(NamedTuple):
    """The small tensors between the two attentions; the backward needs them beside the inputs."""

    q_tilde: Tensor  # [B, H, M, D]
    k_tilde: Tensor  # [B, H, M, D]
    gathered: Tensor  # kernel_3 V  [B, H, M, Dv]
    inverse: Tensor  # kernel_2⁺  [B, H, M, M]
    context: Tensor  # kernel_2⁺ kernel_3 V  [B, H, M, Dv]
    top: Tensor  # largest logit of every row of kernel_3  [B, H, M]
    mass: Tensor  # its row sums of exp(logit - top)  [B, H, M]


@operation("triton_forward")
def triton_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    conv_weight: Tensor | None,
    query_landmarks: Tensor | None,
    key_landmarks: Tensor | None,
    num_landmarks: int,
    scale: float,
    pinv_iterations: int,
    pinv_init: str,
    pinv_ridge: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the output and the fields of `Small`."""
    output, small = _results(query, value, num_landmarks)
    if 0 in output.shape or 0 in key.shape:
        return output.zero_(), *Small(*(x.zero_() for x in small))
    given = None
    if query_landmarks is not None and key_landmarks is not None:
        given = (query_landmarks, key_landmarks)
    call = make_call(query, key, value, mask, query_mask, conv_weight, num_landmarks)
    with on_device_of(query):
        q_tilde, k_tilde = call.landmarks(given)
        gathered, top, mass = gather(call, q_tilde * scale)
        kernel_2 = call.kernel_2(q_tilde, k_tilde, scale)
        inverse = invert(Pinv(pinv_iterations, pinv_init, pinv_ridge), kernel_2)
        context = call.unless_exact(inverse @ gathered, gathered)
        scatter(call, centred(k_tilde) * scale, context, output)
    return output, q_tilde, k_tilde, gathered, inverse, context, top, mass


@shapes_of("triton_forward")
def _(query, key, value, *rest):
    num_landmarks = rest[5]
    output, small = _results(query, value, num_landmarks)
    return output, *small


@operation("triton_backward")
def triton_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    conv_weight: Tensor | None,
    q_tilde: Tensor,
    k_tilde: Tensor,
    gathered: Tensor,
    inverse: Tensor,
    context: Tensor,
    top: Tensor,
    mass: Tensor,
    landmarks_given: bool,
    scale: float,
    pinv_iterations: int,
    pinv_init: str,
    pinv_ridge: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns gradients of query, key, value, conv_weight (empty if none), Q~ and K~."""
    if 0 in grad_output.shape or 0 in key.shape:
        grads = new_gradients(query, key, value, conv_weight, q_tilde)
        return tuple(x.zero_() for x in grads)  # type: ignore[return-value]
    grad_query, grad_key, grad_value = (empty_as(x, x.shape[3]) for x in (query, key, value))
    num_landmarks = q_tilde.shape[2]
    call = make_call(query, key, value, mask, query_mask, conv_weight, num_landmarks)
    grad_output = with_unit_stride(grad_output)
    q_scaled, k_scaled = q_tilde * scale, centred(k_tilde) * scale
    read = centred(context)
    with on_device_of(query):
        grad_k, grad_context, lse, delta = scatter_backward.landmarks_gradient(
            call, grad_output, k_scaled, read
        )
        # the small matrix: context = kernel_2⁺ gathered
        kernel_2 = call.kernel_2(q_tilde, k_tilde, scale)
        grad_inverse = grad_context @ gathered.mT
        pinv = Pinv(pinv_iterations, pinv_init, pinv_ridge)
        grad_kernel = invert_backward(pinv, kernel_2, call.unless_exact(grad_inverse, 0.0))
        grad_logits = kernel_2 * (grad_kernel - (grad_kernel * kernel_2).sum(-1, keepdim=True))
        grad_logits = call.unless_exact(grad_logits, 0.0)
        grad_gathered = call.unless_exact(inverse.mT @ grad_context, grad_context)

        grad = (grad_gathered / mass[..., None]).to(value.dtype)
        bias = (grad.to(gathered.dtype) * gathered).sum(-1)
        mean = k_tilde.mean(2, keepdim=True)
        grad_q = gather_backward.landmarks_gradient(call, q_scaled, top, grad, bias, mean)
        grad_q_tilde = scale * (grad_q + grad_logits @ k_tilde)
        grad_k_tilde = scale * (grad_k + grad_logits.mT @ q_tilde)

        share = call.share(grad_k_tilde, call.keys, key.shape[2], landmarks_given)
        gather_backward.tokens_gradient(
            call, q_scaled, top, grad, bias, share, grad_output, grad_key, grad_value
        )
        share = call.share(grad_q_tilde, call.queries, query.shape[2], landmarks_given)
        scatter_backward.tokens_gradient(
            call, grad_output, k_scaled, read, lse, delta, share, grad_query
        )
        grad_taps = taps_gradient(call, grad_output)
    if landmarks_given:  # with at most M tokens they took no part
        grad_q_tilde = call.unless_exact(grad_q_tilde, 0.0)
        grad_k_tilde = call.unless_exact(grad_k_tilde, 0.0)
    return grad_query, grad_key, grad_value, grad_taps, grad_q_tilde, grad_k_tilde


make_differentiable("triton")


def _results(query: Tensor, value: Tensor, num_landmarks: int) -> tuple[Tensor, Small]:
    dtype = accumulation_dtype(query.dtype)
    of_landmarks = (*query.shape[:2], num_landmarks)
    dim, value_dim = query.shape[3], value.shape[3]
    ends = ((dim,), (dim,), (value_dim,), (num_landmarks,), (value_dim,), (), ())
    small = Small(*(query.new_empty(*of_landmarks, *end, dtype=dtype) for end in ends))
    return empty_as(query, value_dim), small
