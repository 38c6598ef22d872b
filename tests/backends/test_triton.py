"""What `triton` promises beyond the numbers, and the sizes its tiles must cover."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from cases import Case, assert_close, make_inputs
from nystromer import nystrom_attention
from nystromer.backends import triton as backend
from nystromer.functional import choose_backend

pytest.importorskip("triton")

from nystromer.backends.triton.inverse import invert, invert_backward
from nystromer.backends.triton.operation import triton_forward
from nystromer.backends.triton.tiles import precision
from nystromer.pinv import Pinv
from nystromer.pinv_gradient import pinv_backward


def results(tensors, options, backend):
    """The output and every gradient."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    taps = options["conv_weight"]
    if taps is not None:
        taps = taps.detach().requires_grad_()
    output = nystrom_attention(*tensors, **{**options, "conv_weight": taps}, backend=backend)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    inputs = tensors if taps is None else [*tensors, taps]
    return [output, *torch.autograd.grad(output, inputs, grad)]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case(n=63, m=1, kernel=3, heads=1, dim=20), torch.float64),
        (Case(n=111, m=100, kernel=65, batch=1, heads=1, dim=20), torch.float64),
        (Case(n=300, m=256, batch=1, heads=1, dim=40, value_dim=20), torch.float64),
        (Case(n=80, m=7, kernel=5, batch=1, heads=1, dim=256, value_dim=130), torch.float32),
        (Case(n=1100, m=40, batch=2, heads=1, dim=8, value_dim=8, masks="right"), torch.float32),
        (Case(n=70, m=100, n_k=200, batch=1, heads=1), torch.float32),
    ],
    ids=str,
)
def test_triton_agrees_with_eager_at_awkward_sizes(case, dtype, poisoned):
    """Several blocks of landmarks, tiles, splits and window chunks; D, Dv and M not powers of 2."""
    tensors, options = make_inputs(case, dtype)
    tolerance = 1e-11 if dtype == torch.float64 else 3e-5
    both = [results(tensors, options, name) for name in ("triton", "eager")]
    for i, (got, expected) in enumerate(zip(*both, strict=True)):
        assert_close(got, expected, tolerance, f"result {i}")


@pytest.mark.parametrize("m", [1, 5, 64])
def test_triton_inverse_equals_that_of_pinv(m):
    """With equal columns among them, whose sums share the gradient of the start value."""
    matrix = torch.randn(1, 2, m, m, dtype=torch.float64).mul(2).softmax(-1)
    matrix[0, 1] = 1 / m
    grad, pinv = torch.randn_like(matrix), Pinv()
    assert_close(invert(pinv, matrix), pinv.of(matrix), 1e-12)
    pair = (invert_backward(pinv, matrix, grad), pinv_backward(pinv, matrix, grad))
    through_softmax = [matrix * (g - (g * matrix).sum(-1, keepdim=True)) for g in pair]
    assert_close(*through_softmax, 1e-11)


def test_triton_half_precision_holds_small_probabilities():
    """kernel_3's entries near 1 / N are below what float16 holds: they are never rounded."""
    case = Case(n=2000, m=16, batch=1, heads=1)
    (q, k, v), options = make_inputs(case, torch.float16)
    tensors = (q / 100, k / 100, v)  # flat attention
    got = results(tensors, options, "triton")
    expected = results([x.double() for x in tensors], options, "eager")
    for g, e in zip(got[:1] + got[3:], expected[:1] + expected[3:], strict=True):
        assert_close(g, e, 4e-3)


def test_triton_gives_the_same_bits_whatever_else_is_in_the_batch():
    tensors, options = make_inputs(Case(n=600, m=8, batch=3, heads=1, masks="right"), torch.float32)
    together = nystrom_attention(*tensors, **options, backend="triton")
    options["mask"] = options["mask"][1:2]
    alone = nystrom_attention(*(x[1:2] for x in tensors), **options, backend="triton")
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("masks", [None, "holes"])
def test_triton_operation_passes_opcheck(masks):
    """Schema, fake tensors and autograd registration, as torch.compile and export need them."""
    case = Case(n=20, m=8, kernel=5, batch=1, heads=1, masks=masks)
    tensors, options = make_inputs(case, torch.float32)
    q, k, v = (x.requires_grad_() for x in tensors)
    taps, mask = options["conv_weight"].requires_grad_(), options["mask"]
    arguments = (q, k, v, mask, mask, taps, None, None, 8, 0.25, 6, "matrix", None)
    torch.library.opcheck(triton_forward, arguments)


def test_triton_is_one_node_for_torch_compile():
    (q, k, v), _ = make_inputs(Case(n=30, m=8, batch=1, heads=1), torch.float32)
    graphs = []

    def look(graph, inputs):
        graphs.append(graph)
        return graph.forward

    call = torch.compile(
        lambda *x: nystrom_attention(*x, num_landmarks=8, backend="triton"),
        backend=look,
        fullgraph=True,
    )
    expected = nystrom_attention(q, k, v, num_landmarks=8, backend="triton")
    assert torch.equal(call(q, k, v), expected)
    called = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("nystromer.triton_forward" in str(node.target) for node in called) == 1


def test_triton_saves_nothing_that_grows_with_n():
    (q, k, v), _ = make_inputs(Case(n=100, m=8, dim=4, value_dim=4, batch=1, heads=1))
    saved = []

    def pack(x):
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        nystrom_attention(q.requires_grad_(), k, v, num_landmarks=8, backend="triton")
    inputs = {x.data_ptr() for x in (q, k, v)}
    rest = [x for x in saved if x.data_ptr() not in inputs]
    assert rest, "the small tensors are saved"
    assert all(x.shape[2] == 8 for x in rest)


def test_triton_refuses_a_second_derivative():
    q = torch.randn(1, 1, 30, 8, requires_grad=True)
    output = nystrom_attention(q, q, q, num_landmarks=8, backend="triton")
    (grad,) = torch.autograd.grad(output.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*backend='eager'"):
        grad.sum().backward()


def test_triton_keeps_the_memory_order_of_its_inputs():
    heads = torch.randn(1, 30, 2, 8).transpose(1, 2)
    output = nystrom_attention(heads, heads, heads, num_landmarks=8, backend="triton")
    assert output.transpose(1, 2).is_contiguous()


def test_triton_says_what_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    q = torch.randn(1, 1, 30, 8)
    with pytest.raises(
        NotImplementedError, match=r"'triton' needs CUDA tensors, got cpu; use backend='blocked'"
    ):
        nystrom_attention(q, q, q, backend="triton")

    def reason(dim=64, value_dim=64, m=64, dtype=torch.float16):
        query, value = (
            SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, 1, 30, d))
            for d in (dim, value_dim)
        )
        return backend.unsupported(query, query, value, m)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs a GPU of compute capability 8.0, got 7.5" in reason()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert reason() is None
    assert reason(dim=256, value_dim=16, m=256, dtype=torch.bfloat16) is None
    assert "needs float16, bfloat16 or float32, got torch.float64" in reason(dtype=torch.float64)
    assert "needs heads of at most 256, got 64 and 300" in reason(value_dim=300)
    assert "needs at most 256 landmarks, got 257" in reason(m=257)
    monkeypatch.setattr(backend, "INSTALLED", False)
    assert "needs the package triton, which is not installed" in reason()


def test_triton_is_chosen_by_name_alone():
    """Until it has run on a GPU."""
    q = torch.randn(1, 1, 30, 8)
    assert choose_backend("auto", q, q, q, 8) is not backend
    q = SimpleNamespace(device=torch.device("cuda"), dtype=q.dtype, shape=q.shape)
    assert choose_backend("auto", q, q, q, 8) is not backend
    assert choose_backend("triton", q, q, q, 8) is backend


@pytest.mark.parametrize("case", ["128,64,33,float16", "64,256,0,float32"])
def test_triton_kernels_compile_for_a_gpu(case):
    """For sm_90, without one: registers and shared memory within the limits."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks", "attention.compile_kernels", "--case", case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_triton_multiplies_float32_exactly_unless_torch_may_round(monkeypatch):
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert precision() == "ieee"
    torch.set_float32_matmul_precision("high")
    try:
        assert precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert precision() == "ieee"
