"""Half precision and autocast, on every backend: what may be rounded, and what may not."""

import pytest
import torch

from cases import (
    BACKENDS,
    TOLERANCE,
    Case,
    assert_close,
    backends,
    backends_with,
    from_oracle,
    make_inputs,
)
from nystromer import nystrom_attention


@pytest.mark.parametrize(("keys", "values"), [(3, 3), (20, 0), (0, 10)])
@backends_with(torch.float16, torch.bfloat16)
def test_half_precision_does_not_multiply_what_all_tokens_share(backend, keys, values, dtype):
    """A mean of keys or values, as real layers have it: softmaxes cancel it, roundings need not.

    At 3 and 3 scaled_dot_product_attention in bfloat16 has the queries' gradient off by a third.
    """
    case = Case(n=700, m=64, batch=1, heads=1, dim=64, value_dim=64, masks="holes")
    (q, k, v), options = make_inputs(case, dtype)
    tensors = [x.requires_grad_() for x in (q, k + keys, v + values)]
    probe = torch.randn(v.shape).to(dtype)
    wide = [x.double().detach().requires_grad_() for x in tensors]
    expected = nystrom_attention(*wide, **options, backend="eager")
    output = nystrom_attention(*tensors, **options, backend=backend)
    assert_close(output, expected, TOLERANCE[dtype])
    gradients = torch.autograd.grad(output, tensors, probe)
    for ours, truth in zip(
        gradients, torch.autograd.grad(expected, wide, probe.double()), strict=True
    ):
        assert_close(ours, truth, 3 * TOLERANCE[dtype])


@backends
def test_nystrom_attention_under_autocast_casts_inputs_only(backend):
    tensors, options = make_inputs(Case(n=131, m=16, kernel=7), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = nystrom_attention(*tensors, **options, backend=backend)
    assert output.dtype == torch.bfloat16
    assert_close(output, from_oracle(tensors, options), TOLERANCE[torch.bfloat16])
    half = [x.bfloat16() for x in tensors]
    options["conv_weight"] = options["conv_weight"].bfloat16()
    assert torch.equal(output, nystrom_attention(*half, **options, backend=backend))


@pytest.mark.parametrize("backend", [x for x in BACKENDS if x != "eager"])
def test_a_backward_under_autocast_is_the_one_without(backend):
    (q, k, v), options = make_inputs(Case(n=131, m=16, kernel=7), torch.float32)
    q.requires_grad_()
    probe = torch.randn(v.shape)
    output = nystrom_attention(q, k, v, **options, backend=backend)
    (expected,) = torch.autograd.grad(output, q, probe, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad(output, q, probe)
    assert_close(got, expected, 1e-6)
