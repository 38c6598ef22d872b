import pytest
import torch
from torch.nn import functional as F

from cases import assert_close
from nystromer import nystrom_attention
from nystromer.drop_in.attend import attend

M, BELOW = 8, 24


def heads(n, n_k=None, batch=4, dtype=torch.float64):
    n_k = n if n_k is None else n_k
    return [torch.randn(batch, 2, x, 6, dtype=dtype, requires_grad=True) for x in (n, n_k, n_k)]


def exact(q, k, v, mask=None, query_mask=None):
    seen = None if mask is None else (mask | ~mask.any(1, keepdim=True))[:, None, None]
    out = F.scaled_dot_product_attention(q, k, v, seen)
    return out if query_mask is None else out.masked_fill(~query_mask[:, None, :, None], 0.0)


def lengths(*real, n):
    """A mask with holes: real[i] tokens of sequence i are real."""
    ranks = torch.rand(len(real), n).argsort(1).argsort(1)
    return ranks < torch.tensor(real)[:, None]


def run(tensors, mask=None, **options):
    return attend(*tensors, mask, num_landmarks=M, exact_below=BELOW, **options)


def test_attend_is_exact_below_and_nystrom_from_there():
    for n in (1, BELOW - 1):
        tensors = heads(n)
        assert_close(run(tensors), exact(*tensors), 1e-12)
    for n in (BELOW, 70):
        tensors = heads(n)
        assert_close(run(tensors), nystrom_attention(*tensors, num_landmarks=M), 1e-12)


@pytest.mark.parametrize("real", [(70, 5, 0, 23), (70, 50, 24, 25), (3, 5, 0, 23)])
def test_attend_chooses_for_each_sequence_by_its_real_tokens(real):
    tensors, mask = heads(70), lengths(*real, n=70)
    output = run(tensors, mask)
    for i, count in enumerate(real):
        alone = [x[i : i + 1, :, mask[i]] for x in tensors]
        expected = exact(*alone) if count < BELOW else nystrom_attention(*alone, num_landmarks=M)
        if count:
            assert_close(output[i : i + 1, :, mask[i]], expected, 1e-12)
    assert not output.masked_select(~mask[:, None, :, None]).any()


@pytest.mark.parametrize("real", [(70, 5, 0, 23), (70, 50, 24, 25), (3, 5, 0, 23)])
def test_attend_never_reads_padding(real):
    tensors, mask = heads(70), lengths(*real, n=70)
    expected = run(tensors, mask)
    grads = torch.autograd.grad(expected.square().sum(), tensors)
    poisoned = [
        torch.where(mask[:, None, :, None], x, torch.nan).detach().requires_grad_() for x in tensors
    ]
    output = run(poisoned, mask)
    assert torch.equal(output, expected)
    for a, b in zip(torch.autograd.grad(output.square().sum(), poisoned), grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("n", "n_k"), [(70, 90), (70, 70), (10, 70), (70, 10)])
@pytest.mark.parametrize("real", [(70, 5, 0, 23), (70, 50, 24, 25), None])
def test_attend_in_cross_attention_all_queries_are_real(n, n_k, real):
    tensors = heads(n, n_k)
    mask = None if real is None else lengths(*real, n=n_k)
    output = run(tensors, mask, self_attention=False)
    for i in range(4):
        keys = slice(None) if mask is None else mask[i]
        q, k, v = (x[i : i + 1] for x in tensors)
        k, v = k[:, :, keys], v[:, :, keys]
        if k.shape[2] == 0:
            assert not output[i].any()
        elif min(n, k.shape[2]) < BELOW:
            assert_close(output[i : i + 1], exact(q, k, v), 1e-12)
        else:
            everything = torch.ones(1, n, dtype=torch.bool)
            expected = nystrom_attention(q, k, v, num_landmarks=M, query_mask=everything)
            assert_close(output[i : i + 1], expected, 1e-12)


@pytest.mark.parametrize("real", [(5, 5, 0, 23), (70, 5, 0, 23), None])
def test_attend_gives_the_convolution_a_gradient_in_every_step(real):
    n = 20 if real is None else 70
    taps = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    output = run(heads(n), None if real is None else lengths(*real, n=n), conv_weight=taps)
    (grad,) = torch.autograd.grad(output.sum(), taps)
    assert torch.equal(grad != 0, torch.full((2, 3), real is not None and max(real) >= BELOW))


@pytest.mark.parametrize("self_attention", [True, False])
def test_attend_compiles_without_a_graph_break_and_reads_no_mask(self_attention):
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for real in ((70, 5, 0, 23), (70, 50, 24, 25), (3, 5, 0, 23)):
        tensors, mask = heads(70), lengths(*real, n=70)
        expected = run(tensors, mask, self_attention=self_attention)
        output = compiled(tensors, mask, self_attention=self_attention)
        assert_close(output, expected, 1e-12)
        pair = [torch.autograd.grad(x.square().sum(), tensors) for x in (output, expected)]
        for a, b in zip(*pair, strict=True):
            assert_close(a, b, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attend_runs_in_half_precision(dtype):
    tensors, mask = heads(70, dtype=dtype), lengths(70, 5, 0, 30, n=70)
    output = run(tensors, mask, conv_weight=torch.randn(2, 3, dtype=dtype))
    assert output.dtype == dtype
    assert torch.isfinite(output).all()
