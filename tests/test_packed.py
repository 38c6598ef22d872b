"""Jagged nested tensors: nystrom_attention and NystromAttention of each sequence as if alone."""

import pytest
import torch

from cases import BACKENDS, assert_close
from nystromer import (
    NystromAttention,
    clustered_attention,
    clustered_attention_rows,
    nystrom_attention,
    nystrom_attention_rows,
)

backends = pytest.mark.parametrize("backend", BACKENDS)
prototype = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
LENGTHS = (50, 9, 0, 31)


def jagged(*shape, lengths=LENGTHS, layout=torch.jagged):
    """Sequences [n, ...], in one nested tensor with a gradient."""
    rows = [torch.randn(n, *shape) for n in lengths]
    return torch.nested.nested_tensor(rows, layout=layout, requires_grad=True)


def heads_first(x):
    return x.transpose(1, 2)


def alone(x):
    """The sequences [n, H, D] as batches of one, [1, H, n, D]."""
    return [part.transpose(0, 1)[None] for part in x.unbind()]


@backends
def test_nystrom_attention_of_a_jagged_tensor_is_every_sequence_alone(backend):
    q, k, v = jagged(2, 8), jagged(2, 8), jagged(2, 6)
    k, v = (
        torch.nested.nested_tensor_from_jagged(x.values(), q.offsets()) for x in (k, v)
    )  # ragged as the queries are
    taps = torch.randn(2, 3)
    options = {"num_landmarks": 4, "conv_weight": taps, "backend": backend}
    output = nystrom_attention(*map(heads_first, (q, k, v)), **options)
    parts = [
        nystrom_attention(*part, **options) for part in zip(*map(alone, (q, k, v)), strict=True)
    ]
    for got, right in zip(heads_first(output).unbind(), parts, strict=True):
        torch.testing.assert_close(got, right[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    output = heads_first(output)
    assert (output + torch.cat([q, q], -1)[..., :6]).shape == output.shape  # of the same lengths
    (got,) = torch.autograd.grad(output.values().sin().sum(), q)
    (right,) = torch.autograd.grad(sum(x.sin().sum() for x in parts), q)
    assert right.values().norm() > 0
    torch.testing.assert_close(got.values(), right.values(), rtol=1e-4, atol=1e-5)


def test_nystrom_attention_takes_jagged_keys_of_other_lengths():
    q, k = jagged(4, 8), jagged(2, 8, lengths=(20, 0, 12, 40))
    output = nystrom_attention(*map(heads_first, (q, k, k)), num_landmarks=4, enable_gqa=True)
    for got, part, keys in zip(heads_first(output).unbind(), alone(q), alone(k), strict=True):
        right = nystrom_attention(part, keys, keys, num_landmarks=4, enable_gqa=True)
        torch.testing.assert_close(got, right[0].transpose(0, 1))


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_nystrom_attention_module_takes_a_jagged_tensor(backend):
    module = NystromAttention(24, 4, num_landmarks=8, conv_kernel_size=5, backend=backend)
    x = jagged(24)
    output = x + module(x)
    for got, part in zip(output.unbind(), x.unbind(), strict=True):
        torch.testing.assert_close(got, part + module(part))
    (got,) = torch.autograd.grad(output.values().sin().sum(), x)
    (right,) = torch.autograd.grad(sum((y + module(y)).sin().sum() for y in x.unbind()), x)
    torch.testing.assert_close(got.values(), right.values(), rtol=1e-4, atol=1e-5)


def test_nystrom_attention_module_compiles_with_a_jagged_tensor():
    module, x = NystromAttention(24, 4, num_landmarks=8, conv_kernel_size=5), jagged(24)
    torch._dynamo.reset()
    output = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    expected = module(x)
    assert_close((x + output).values(), (x + expected).values(), 1e-6)
    both = (torch.autograd.grad(y.values().sin().sum(), x)[0] for y in (output, expected))
    torch.testing.assert_close(*(y.values() for y in both), rtol=1e-4, atol=1e-5)


def test_nystrom_attention_module_takes_only_empty_sequences():
    module, x = NystromAttention(24, 4), jagged(24, lengths=(0, 0))
    assert (x + module(x)).values().shape == (0, 24)


@prototype
def test_nested_tensors_that_do_not_fit():
    tokens = jagged(2, 8)
    x, strided = heads_first(tokens), jagged(2, 8, layout=torch.strided)
    others, fewer = (heads_first(jagged(2, 8, lengths=n)) for n in ((1, 2, 3, 4), (9, 9)))
    shuffled = heads_first(jagged(2, 8, lengths=LENGTHS[::-1]))
    dense, ones = torch.randn(4, 50, 2, 8), torch.ones(4, 50, dtype=torch.bool)
    starts = torch.arange(4)
    gaps = torch.nested.narrow(dense, 1, starts, starts + 4, layout=torch.jagged)
    bad = [
        ((strided,) * 3, {}, r"of layout torch.strided; write .*layout=torch.jagged"),
        ((x, dense, dense), {}, "`key` must be a nested tensor as the other inputs are"),
        ((tokens,) * 3, {}, r"\[B, H, j, D\], .* write query.transpose\(1, 2\)"),
        ((heads_first(gaps),) * 3, {}, r"gaps between its sequences; write query.*contiguous\(\)"),
        ((x, fewer, fewer), {}, "`query` must hold as many sequences as `key`"),
        ((x, x, others), {}, "`value` sequences as long as those"),
        ((x, x, x), {"mask": ones}, "`mask` cannot be given beside nested tensors; leave it out"),
        ((x, x, x), {"query_mask": ones}, "`query_mask` cannot be given beside nested"),
        ((x, x, x), {"landmarks": (dense, dense)}, "`landmarks` cannot be given beside nested"),
        ((x, x, x), {"is_causal": True}, "impossible with Nyström attention"),
        ((x, shuffled, shuffled), {"conv_weight": torch.ones(2, 3)}, "keys of different lengths"),
    ]
    for args, options, message in bad:
        with pytest.raises(ValueError, match=message):
            nystrom_attention(*args, **options)
    with pytest.raises(ValueError, match=r"`x` .* layout torch.strided; write .*torch.jagged"):
        NystromAttention(24, 4)(jagged(24, layout=torch.strided))


def test_the_advice_for_gaps_holds():
    dense, starts = torch.randn(4, 50, 2, 8), torch.arange(4)
    gaps = torch.nested.narrow(dense, 1, starts, starts + 9, layout=torch.jagged).transpose(1, 2)
    x = gaps.transpose(1, 2).contiguous().transpose(1, 2)
    output = nystrom_attention(x, x, x, num_landmarks=4)
    alone = dense[2, 2:13].transpose(0, 1)
    expected = nystrom_attention(alone, alone, alone, num_landmarks=4)
    torch.testing.assert_close(heads_first(output)[2].transpose(0, 1), expected)


@prototype
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_functions_of_batches_alone_refuse_nested_tensors(layout):
    x = jagged(2, 8, layout=layout).transpose(1, 2)
    message = r"`query` is a nested tensor.*write torch.nested.to_padded_tensor\(query, 0.0\)"
    for call in (
        lambda: clustered_attention(x, x, x),
        lambda: clustered_attention_rows(x, x, [0]),
        lambda: nystrom_attention_rows(x, x, [0]),
    ):
        with pytest.raises(ValueError, match=message):
            call()
