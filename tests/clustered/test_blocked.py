import pytest
import torch

from cases import assert_close
from clustered.test_attention import inputs
from memory import number_printed
from nystromer import clustered_attention
from nystromer.clustered import operation
from nystromer.clustered.operation import clustered_forward

BUDGET = {"num_query_clusters": 4, "num_key_clusters": 4, "num_exact_keys": 8}


@pytest.mark.parametrize("masks", [None, "short"])
def test_clustered_forward_is_an_operation_of_torch(masks):
    """Schema, fake tensors and autograd registration, as torch.compile and export need them."""
    (q, k, v), kwargs = inputs(((40, 8, 8, masks), (4, 4, 8)), torch.float32)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(clustered_forward, (q, k, v, kwargs["mask"], 4, 4, 8, 0.25))


def test_blocked_refuses_a_second_derivative():
    q = torch.randn(1, 2, 50, 8, requires_grad=True)
    output = clustered_attention(q, q, q, **BUDGET, backend="blocked")
    (grad,) = torch.autograd.grad(output.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*backend='eager'"):
        grad.sum().backward()


def test_blocked_keeps_the_memory_order_of_its_inputs():
    tokens_first = torch.randn(2, 50, 4, 8).transpose(1, 2)
    for q in (tokens_first, tokens_first.contiguous()):
        assert clustered_attention(q, q, q, **BUDGET).stride() == q.stride()


@pytest.mark.parametrize("rows", [1, 500, 10**6])  # one head at a time, some, all
def test_blocked_takes_any_number_of_heads_at_a_time(rows, monkeypatch):
    (q, k, v), kwargs = inputs(((131, 8, 8, "holes"), (6, 4, 8)))
    qkv = [x.repeat(1, 3, 1, 1).requires_grad_() for x in (q, k, v)]
    results = []
    monkeypatch.setattr(operation, "ROWS_A_THREAD", rows)
    for backend in ("eager", "blocked"):
        output = clustered_attention(*qkv, **kwargs, backend=backend)
        results.append([output, *torch.autograd.grad(output.square().sum(), qkv)])
    for eager, blocked in zip(*results, strict=True):
        assert_close(blocked, eager, 1e-11)


def test_blocked_computes_again_what_it_does_not_save():
    """The backward gets the inputs, and whole numbers of which two tables grow with N."""
    saved = []

    def pack(x):
        saved.append(x)
        return x

    (q, k, v), _ = inputs(((300, 8, 8, None), (4, 4, 8)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        clustered_attention(q.requires_grad_(), k, v, **BUDGET, backend="blocked")
    known = {x.data_ptr() for x in (q, k, v)}
    rest = [tuple(x.shape) for x in saved if x.data_ptr() not in known]
    assert sorted(rest) == [(2, 2, 4, 8), (2, 2, 300), (2, 2, 300)]
    assert not any(x.is_floating_point() for x in saved if x.data_ptr() not in known)


MEASURE = """
from nystromer import clustered_attention

backward = sys.argv[1] == "backward"

def run(n):
    q, k, v = (torch.randn(1, 8, n, 64).requires_grad_(backward) for _ in range(3))
    before = peak()
    output = clustered_attention(q, k, v, backend=sys.argv[2])
    if backward:
        output.sum().backward()
    return (peak() - before) / (q.numel() * 4)

run(1024)
print(run(32768))
"""


@pytest.mark.parametrize(("direction", "limit"), [("forward", 5), ("backward", 11)])
def test_blocked_memory_grows_by_few_input_sized_tensors(direction, limit):
    """N = 32,768, 8 heads of 64, float32; the output and the gradients count."""
    assert number_printed(MEASURE, direction, "blocked") <= limit


def test_the_memory_measure_sees_the_tables_of_eager():
    assert number_printed(MEASURE, "forward", "eager") > 8
