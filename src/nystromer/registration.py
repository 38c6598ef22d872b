"""Operations that autograd, torch.compile and torch.export see as one node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nystromer.precision import without_autocast

# An operation belongs to the process, and its modules may be imported again (importlib.reload, a
# notebook's autoreload): torch is given a caller of the newest function once, and the newest
# functions are kept where a second import finds them.
_newest: dict[str, Callable[..., Any]] = vars(torch.ops.nystromer).setdefault("newest", {})


def _first(slot: str, function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Puts the function in its slot; returns the slot's caller the first time, then None."""
    known, _newest[slot] = slot in _newest, function
    return None if known else lambda *args, **kwargs: _newest[slot](*args, **kwargs)


def operation(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function, by its annotations, as torch.ops.nystromer.<name>, on every device.

    torch.library.custom_op does the same, but its first call imports torch's compiler: a second or
    two for somebody who compiles nothing. Autocast is off within: a backward may run under it.
    """

    def register(function: Callable[..., Any]) -> Any:
        def run(first: Tensor, *args: Any, **kwargs: Any) -> Any:
            with without_autocast(first):
                return function(first, *args, **kwargs)

        qualified = f"nystromer::{name}"
        caller = _first(name, run)
        if caller is not None:
            schema = torch.library.infer_schema(function, mutates_args=())
            torch.library.define(qualified, schema)
            torch.library.impl(qualified, "default", caller)
        return getattr(torch.ops.nystromer, name).default

    return register


def shapes_of(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers what torch.compile runs in place of the operation: empty results, of its shapes."""

    def register(function: Callable[..., Any]) -> None:
        caller = _first(f"shapes of {name}", function)
        if caller is not None:
            torch.library.register_fake(f"nystromer::{name}", caller)

    return register


def derivative_of(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None
) -> None:
    """Registers the backward of the operation, as torch.library.register_autograd does."""
    first = _first(f"derivative of {name}", backward)
    setup = None if setup_context is None else _first(f"context of {name}", setup_context)
    if first is not None:
        torch.library.register_autograd(f"nystromer::{name}", first, setup_context=setup)


def make_differentiable(kind: str) -> None:
    """Joins <kind>_forward and <kind>_backward for autograd; a second derivative is refused.

    Both take query, key, value, mask, query_mask and conv_weight first and end in the four numbers
    of the scale and the inverse; forward's outputs after the first are saved for the backward.
    """
    run = getattr(torch.ops.nystromer, f"{kind}_backward").default

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # nobody sees the outputs after the first
        ctx.save_for_backward(*inputs[:6], *output[1:])
        ctx.landmarks_given = inputs[6] is not None
        ctx.settings = inputs[-4:]  # scale, pinv_iterations, pinv_init, pinv_ridge

    def first(ctx: Any, grad_output: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 13
        saved = ctx.saved_tensors  # once: activation checkpointing gives them out only once
        conv_weight = saved[5]
        grads = run(grad_output, *saved, ctx.landmarks_given, *ctx.settings)
        query, key, value, taps, q_tilde, k_tilde = grads
        taps = None if conv_weight is None else taps.to(conv_weight.dtype)
        landmarks = (q_tilde, k_tilde) if ctx.landmarks_given else (None, None)
        return query, key, value, None, None, taps, *landmarks, None, None, None, None, None

    def shapes(  # of the backward's results, for torch.compile
        grad_output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        query_mask: Tensor | None,
        conv_weight: Tensor | None,
        q_tilde: Tensor,
        *rest: Any,
    ) -> tuple[Tensor, ...]:
        return new_gradients(query, key, value, conv_weight, q_tilde)

    shapes_of(f"{kind}_backward")(shapes)
    derivative_of(f"{kind}_forward", first, setup_context)
    refuse_second_derivative(f"{kind}_backward", kind)


def refuse_second_derivative(backward: str, kind: str) -> None:
    """Makes a backward through the operation `backward` of backend `kind` an error that says so."""

    def second(ctx: Any, *unused: Any) -> None:
        raise NotImplementedError(
            f"backend={kind!r} has no second derivative, got a backward through its gradients; use "
            "backend='eager'."
        )

    derivative_of(backward, second)


def is_traced() -> bool:
    """Returns whether a graph is being made of this call: it must not ask for a tensor's values."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined]


_of_torch_alone = [False]  # of the process; torch.compile cannot follow a ContextVar


@contextmanager
def of_torch_alone() -> Iterator[None]:
    """Makes backend="auto" take a backend that is made of torch's own operations: other runtimes,
    to which a graph is translated, know no operation of ours."""
    before, _of_torch_alone[0] = _of_torch_alone[0], True
    try:
        yield
    finally:
        _of_torch_alone[0] = before


def must_be_of_torch_alone() -> bool:
    """Returns whether the call stands within `of_torch_alone`."""
    return _of_torch_alone[0]


def differentiated_anew() -> bool:
    """Whether torch.func.grad or jvp, or forward-mode differentiation, is at work.

    An operation has a backward alone: forward mode would take its derivative for zero.
    """
    if torch.compiler.is_compiling():
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(x.key() != torch._C._functorch.TransformType.Vmap for x in levels)


def only_backward(name: str) -> str:
    return (
        f"backend={name!r} has a backward alone, got a call under torch.func or forward-mode "
        "differentiation; use backend='eager'."
    )


def empty_as(like: Tensor, dim: int) -> Tensor:
    """An empty [B, H, N, dim], in memory as `like` is: heads before tokens, or tokens first."""
    batch, heads, n, _ = like.shape
    if like.stride(1) < like.stride(2):
        return like.new_empty(batch, n, heads, dim).transpose(1, 2)
    return like.new_empty(batch, heads, n, dim)


def new_gradients(
    query: Tensor, key: Tensor, value: Tensor, conv_weight: Tensor | None, q_tilde: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Empty gradients of the tokens; zeros for the taps [H, K] (or [0]) and for Q~ and K~."""
    return (
        empty_as(query, query.shape[3]),
        empty_as(key, key.shape[3]),
        empty_as(value, value.shape[3]),
        q_tilde.new_zeros((0,) if conv_weight is None else conv_weight.shape),
        torch.zeros_like(q_tilde),
        torch.zeros_like(q_tilde),
    )
