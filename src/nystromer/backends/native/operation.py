"""The forward and the backward of the library, as operations of autograd and torch.compile.

Tensors here are only allocated: torch's own loops over large ones would hang in a forked child.
"""

# No `from __future__ import annotations` here: torch reads the signatures of the operations.
import torch
from torch import Tensor

from nystromer.backends.native import library
from nystromer.pinv import NORM_DIMS
from nystromer.registration import empty_as, make_differentiable, operation, shapes_of

INITS = {init: i for i, init in enumerate(NORM_DIMS)}  # `Norms` in source/call.h


@operation("native_forward")
def native_forward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, and what stands between the two attentions, in float32, [B, H, M, .]: Q~, K~,
    gathered = kernel_3 V, context = kernel_2⁺ kernel_3 V, log2 of the row sums of kernel_3."""
    results = _results(query, value, num_landmarks)
    output, *small = results
    if query_landmarks is not None and key_landmarks is not None:
        small[0].copy_(query_landmarks)
        small[1].copy_(key_landmarks)
    call = _call(query, key, value, mask, query_mask, output, small)
    call.landmarks_given = query_landmarks is not None
    _set_pinv(call, scale, pinv_iterations, pinv_init, pinv_ridge)
    taps = _set_taps(call, conv_weight)
    library.run("forward", call)
    del taps  # alive until here
    return results


@shapes_of("native_forward")
def _(query, key, value, *rest):  # type: ignore[no-untyped-def]
    return _results(query, value, rest[5])


@operation("native_backward")
def native_backward(
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
    context: Tensor,
    log2_mass: Tensor,
    landmarks_given: bool,
    scale: float,
    pinv_iterations: int,
    pinv_init: str,
    pinv_ridge: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, conv_weight (empty if none), Q~ and K~."""
    small = [x.contiguous() for x in (q_tilde, k_tilde, gathered, context, log2_mass)]
    call = _call(query, key, value, mask, query_mask, grad_output, small)
    call.landmarks_given = landmarks_given
    _set_pinv(call, scale, pinv_iterations, pinv_init, pinv_ridge)
    taps = _set_taps(call, conv_weight)
    grad_query, grad_key, grad_value = (empty_as(x, x.shape[3]) for x in (query, key, value))
    grad_q_tilde, grad_k_tilde = torch.empty_like(small[0]), torch.empty_like(small[1])
    # of bfloat16 taps too, summed in float32
    grad_taps = q_tilde.new_empty((0,) if conv_weight is None else conv_weight.shape)
    call.grad_query, call.grad_key, call.grad_value = map(
        library.tensor, (grad_query, grad_key, grad_value)
    )
    call.grad_conv_weight = grad_taps.data_ptr()
    call.grad_q_tilde, call.grad_k_tilde = grad_q_tilde.data_ptr(), grad_k_tilde.data_ptr()
    library.run("backward", call)
    del taps  # alive until here
    return grad_query, grad_key, grad_value, grad_taps, grad_q_tilde, grad_k_tilde


make_differentiable("native")


def _results(
    query: Tensor, value: Tensor, num_landmarks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def small(dim: int) -> Tensor:
        return query.new_empty(*query.shape[:2], num_landmarks, dim, dtype=torch.float32)

    dim, value_dim = query.shape[3], value.shape[3]
    output = empty_as(query, value_dim)
    return output, small(dim), small(dim), small(value_dim), small(value_dim), small(1)


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    output: Tensor,
    small: list[Tensor],
) -> library.Call:
    """output: to be written, or its gradient. small: what stands between the attentions."""
    call = library.Call()
    call.batch, call.heads, call.queries, call.dim = query.shape
    call.keys, call.value_dim = value.shape[2:]
    call.landmarks = small[0].shape[2]
    call.threads = torch.get_num_threads()
    call.bfloat16 = query.dtype == torch.bfloat16
    call.key_mask, call.query_mask = map(library.mask, (mask, query_mask))
    call.query, call.key, call.value, call.output = map(library.tensor, (query, key, value, output))
    call.q_tilde, call.k_tilde, call.gathered, call.context, call.log2_mass = (
        x.data_ptr() for x in small
    )
    return call


def _set_pinv(
    call: library.Call, scale: float, iterations: int, init: str, ridge: float | None
) -> None:
    call.scale, call.pinv_iterations, call.pinv_init = scale, iterations, INITS[init]
    call.pinv_ridge = -1.0 if ridge is None else ridge


def _set_taps(call: library.Call, conv_weight: Tensor | None) -> Tensor | None:
    """The taps as the library reads them; they must outlive the call."""
    if conv_weight is None:
        return None
    taps = conv_weight.float().contiguous()
    call.taps, call.conv_weight = taps.shape[1], taps.data_ptr()
    return taps
