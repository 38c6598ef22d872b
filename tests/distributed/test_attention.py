"""One sequence in two and three gloo processes against the same in one."""

import pytest
import torch

import gloo
import parts
from cases import TOLERANCE, from_oracle
from nystromer import nystrom_attention, nystrom_attention_rows


def whole(case, dtype):
    """The oracle's output, and the gradients of the plain operation in float64."""
    tensors, options, weights = parts.inputs(case, dtype)
    wide = [x.double().nan_to_num().requires_grad_() for x in tensors]
    if options["conv_weight"] is not None:
        options["conv_weight"] = options["conv_weight"].double().requires_grad_()
        wide.append(options["conv_weight"])
    loss = (nystrom_attention(*wide[:3], backend="eager", **options) * weights).sum()
    gradients = torch.autograd.grad(loss, wide)
    return [from_oracle(wide[:3], {**options, "landmarks": None}), *gradients]


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("size", [2, 3])
def test_parts_equal_the_whole(size, tmp_path):
    processes = gloo.run(parts.__file__, "attention", size, tmp_path)
    errors = {}
    for call, *results in zip(parts.combinations(), *processes, strict=True):
        _, dtype, case = call
        for j, value in enumerate(whole(case, dtype)):
            pieces = [result[j] for result in results]
            # each process has the taps' gradient of its own part
            joined = sum(x.double() for x in pieces) if j == 4 else torch.cat(pieces, 2)
            assert pieces[0].dtype == dtype
            error = relative(joined, value)
            if not error <= TOLERANCE[dtype] * (3 if j else 1):
                errors[" ".join(map(str, (*call, ["output", "q", "k", "v", "taps"][j])))] = error
    assert not errors, "\n".join(f"{k}: {v:.1e}" for k, v in errors.items())


@pytest.mark.parametrize("size", [2, 3])
def test_rows_of_parts_are_columns_of_the_whole(size, tmp_path):
    processes = gloo.run(parts.__file__, "rows", size, tmp_path)
    for case, *results in zip(parts.CUT, *processes, strict=True):
        (q, k), options = parts.row_inputs(case)
        expected = nystrom_attention_rows(q, k, parts.places(q), **options)
        torch.testing.assert_close(torch.cat(results, 3), expected, rtol=1e-9, atol=1e-12)
