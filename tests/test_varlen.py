"""nystrom_attention_varlen: every sequence as if alone."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cases import BACKENDS, TOLERANCE, assert_close, widest
from nystromer import nystrom_attention, nystrom_attention_varlen
from nystromer.backends.blocked.operation import blocked_forward

backends = pytest.mark.parametrize("backend", BACKENDS)
LENGTHS = [50, 0, 9, 8, 31, 1, 0]


def bounds_of(lengths, dtype=torch.int32):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype)


def draw(lengths, dim=6, dtype=torch.float64, heads=2):
    return torch.randn(sum(lengths), heads, dim, dtype=dtype).requires_grad_()


def alone(tensors, all_lengths, **options):
    """nystrom_attention of each sequence in a batch of its own, packed afterwards."""
    parts = [x.split(n) for x, n in zip(tensors, all_lengths, strict=True)]
    outputs = [
        nystrom_attention(*(x.transpose(0, 1)[None] for x in part), **options)[0].transpose(0, 1)
        for part in zip(*parts, strict=True)
    ]
    return torch.cat(outputs)


def check_alike(output, expected, inputs):
    tolerance = TOLERANCE[output.dtype]
    assert_close(output, expected, tolerance)
    probe = torch.randn_like(output)
    both = (torch.autograd.grad(x, inputs, probe) for x in (output, expected))
    for got, right in zip(*both, strict=True):
        assert right.norm() > 0
        assert_close(got, right, 10 * tolerance, "gradient")


@pytest.mark.parametrize(
    "settings", [{}, {"pinv_init": "sequence"}, {"pinv_ridge": 1e-2}, {"scale": 0.7}], ids=str
)
@backends
def test_nystrom_attention_varlen_is_every_sequence_alone(backend, settings, poisoned):
    dtype = widest(backend)
    q, k, v = (draw(LENGTHS, dim, dtype) for dim in (6, 6, 5))
    taps = torch.randn(2, 5, dtype=dtype).requires_grad_()
    options = {"num_landmarks": 8, "conv_weight": taps, "backend": backend, **settings}
    output = nystrom_attention_varlen(q, k, v, bounds_of(LENGTHS), **options)
    assert output.is_contiguous()
    check_alike(output, alone((q, k, v), [LENGTHS] * 3, **options), (q, k, v, taps))


@backends
def test_nystrom_attention_varlen_takes_other_lengths_of_keys(backend, poisoned):
    """Few queries, few keys, neither, and none of either."""
    of_queries, of_keys = [40, 3, 40, 20, 0, 7], [30, 25, 0, 5, 12, 30]
    dtype = widest(backend)
    q, k, v = draw(of_queries, 6, dtype), draw(of_keys, 6, dtype), draw(of_keys, 5, dtype)
    options = {"num_landmarks": 8, "backend": backend}
    bounds = bounds_of(of_queries, torch.int64), bounds_of(of_keys)
    output = nystrom_attention_varlen(q, k, v, *bounds, **options)
    check_alike(output, alone((q, k, v), (of_queries, of_keys, of_keys), **options), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_nystrom_attention_varlen_takes_every_dtype(backend, dtype):
    lengths = [300, 64, 5]
    q = draw(lengths, dtype=dtype)
    output = nystrom_attention_varlen(
        q, q, q, bounds_of(lengths), num_landmarks=16, backend=backend
    )
    assert output.dtype == dtype
    wide = q.detach().double()
    expected = alone((wide,) * 3, [lengths] * 3, num_landmarks=16, backend="eager")
    assert_close(output, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=str)
@backends
def test_nystrom_attention_varlen_takes_no_tokens(backend, lengths):
    q = draw(lengths, dtype=widest(backend))
    output = nystrom_attention_varlen(q, q, q, bounds_of(lengths), backend=backend)
    assert output.shape == (0, 2, 6)
    output.sum().backward()
    assert q.grad.shape == q.shape


@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_nystrom_attention_varlen_keeps_nan_in_its_sequence(backend):
    q = draw(LENGTHS).detach()
    options = {"num_landmarks": 8, "conv_weight": q.new_ones(2, 5), "backend": backend}
    clean = nystrom_attention_varlen(q, q, q, bounds_of(LENGTHS), **options)
    q[55] = torch.nan  # in the third sequence, 50 ... 58
    output = nystrom_attention_varlen(q, q, q, bounds_of(LENGTHS), **options)
    assert output[50:59].isnan().any()
    kept = torch.ones(len(q), dtype=torch.bool)
    kept[50:59] = False
    assert torch.equal(output[kept], clean[kept])


@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_nystrom_attention_varlen_makes_no_table_of_more_landmarks_than_tokens(backend):
    q = draw([30, 40], dtype=torch.float32)
    output = nystrom_attention_varlen(
        q, q, q, bounds_of([30, 40]), num_landmarks=10**9, backend=backend
    )
    exact = alone((q, q, q), [[30, 40]] * 3, num_landmarks=40)
    assert_close(output, exact, 1e-5)


def test_nystrom_attention_varlen_takes_grouped_heads_and_any_strides():
    q = draw(LENGTHS, heads=4)
    k, v = (torch.randn(6, 2, sum(LENGTHS), dtype=torch.float64).permute(2, 1, 0) for _ in "kv")
    options = {"num_landmarks": 8, "enable_gqa": True}
    output = nystrom_attention_varlen(q, k, v, bounds_of(LENGTHS), **options)
    assert_close(output, alone((q, k, v), [LENGTHS] * 3, **options), 1e-11)


class Varlen(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.options = {"num_landmarks": 8, "backend": backend}

    def forward(self, q, k, v, bounds):
        return nystrom_attention_varlen(q, k, v, bounds, **self.options)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_nystrom_attention_varlen_exports_with_any_lengths(backend):
    module = Varlen(backend)
    tokens, count = torch.export.Dim("tokens", min=4, max=4096), torch.export.Dim("count", min=3)
    q = draw([20, 30], dtype=torch.float32).detach()
    shapes = ({0: tokens}, {0: tokens}, {0: tokens}, {0: count})
    program = torch.export.export(
        module, (q, q, q, bounds_of([20, 30])), dynamic_shapes=shapes
    ).module()
    q = draw(LENGTHS, dtype=torch.float32).detach()
    assert_close(program(q, q, q, bounds_of(LENGTHS)), module(q, q, q, bounds_of(LENGTHS)), 1e-5)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_nystrom_attention_varlen_compiles_once_for_all_lengths(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module = Varlen(backend)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for lengths in ([20, 30], LENGTHS):
        q = draw(lengths, dtype=torch.float32)
        inputs = (q, q, q, bounds_of(lengths))
        check_alike(compiled(*inputs), module(*inputs), [q])
    assert counter.frame_count == 1


def test_nystrom_attention_varlen_checks_bounds_in_a_compiled_call():
    compiled = torch.compile(Varlen("blocked"), fullgraph=True, backend="aot_eager")
    q = draw([50])
    with pytest.raises(ValueError, match=r"from 0 to the number of tokens, 50, got \[0, 30, 49\]"):
        compiled(q, q, q, torch.tensor([0, 30, 49]))


@pytest.mark.parametrize("other", [False, True])
def test_the_operation_passes_opcheck_with_bounds(other):
    q, k = (x.detach().transpose(0, 1)[None] for x in (draw([20, 3]), draw([15, 9])))
    q, k = q.requires_grad_(), k.requires_grad_()
    bounds = bounds_of([20, 3])
    taps = None if other else torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    key, of_keys = (k, bounds_of([15, 9])) if other else (q, bounds)
    arguments = (q, key, key, of_keys, bounds, taps, None, None, 8, 0.25, 6, "matrix", None)
    torch.library.opcheck(blocked_forward, arguments)


def test_nystrom_attention_varlen_errors():
    q, good = torch.randn(10, 2, 8), torch.tensor([0, 4, 10])
    bad = [
        ((q[None], q, q, good), {}, ValueError, r"packed sequences \[T, H, D\], got \[1, 10, 2, 8"),
        ((q.tolist(), q, q, good), {}, TypeError, "`query` must be a tensor, got list"),
        ((q, q[:9], q, good), {}, ValueError, "`cu_seqlens` must go from 0 to .* 9, got"),
        ((q, q, q[:9], good), {}, ValueError, "must agree in B, H and Nk"),
        ((q, q, q, [0, 4, 10]), {}, TypeError, r"`cu_seqlens` must be an int tensor \[S \+ 1\]"),
        ((q, q, q, good.float()), {}, ValueError, "int32 or int64 .* got torch.float32"),
        ((q, q, q, good[None]), {}, ValueError, r"the bounds of S sequences, got .* \[1, 3\]"),
        ((q, q, q, good[:0]), {}, ValueError, r"int32 or int64 \[S \+ 1\].* got torch.int64 \[0\]"),
        ((q, q, q, good.to("meta")), {}, ValueError, "`cu_seqlens` is on meta, the tokens on cpu"),
        ((q, q, q, good[1:]), {}, ValueError, r"go from 0 to .* 10, got \[4, 10\]; write the cum"),
        ((q, q, q, good[:2]), {}, ValueError, r"number of tokens, 10, got \[0, 4\]"),
        ((q, q, q, torch.tensor([0, 6, 4, 10])), {}, ValueError, r"got \[0, 6, 4, 10\]"),
        ((q, q, q, torch.arange(10)), {}, ValueError, r"got \[0, 1, 2, \.\.\., 7, 8, 9\]"),
        ((q, q, q, good, good[1:]), {}, ValueError, "`cu_seqlens_k` must go from 0"),
        (
            (q, q, q, good, torch.tensor([0, 10])),
            {},
            ValueError,
            "must bound as many sequences, got 2 and 1",
        ),
        (
            (q, q, q, good, good.clone()),
            {"conv_weight": torch.ones(2, 3)},
            ValueError,
            "needs self-attention .* got `cu_seqlens_k`; leave one of them out",
        ),
        ((q, q, q, good), {"num_landmarks": 0}, ValueError, "`num_landmarks` must be at least 1"),
        ((q, q, q, good), {"pinv_init": "x"}, ValueError, "`pinv_init` must be one of"),
        ((q, q, q, good), {"conv_weight": torch.ones(2, 2)}, ValueError, r"\[2, odd\], got"),
        ((q, q[:, :1], q[:, :1], good), {}, ValueError, "write enable_gqa=True"),
        ((q, q, q, good), {"backend": "fast"}, ValueError, "`backend` must be one of"),
    ]
    for args, options, error, message in bad:
        with pytest.raises(error, match=message):
            nystrom_attention_varlen(*args, **options)
