"""What `blocked` promises beyond the numbers: memory, and one node for autograd and compile."""

import pytest
import torch

from cases import TOLERANCE, Case, assert_close, from_oracle, make_inputs, relative_error
from memory import number_printed
from nystromer import nystrom_attention
from nystromer.backends.blocked.operation import blocked_forward
from nystromer.backends.blocked.sequences import Workspace

MEASURE = """
from nystromer import nystrom_attention

backward, masked = sys.argv[1] == "backward", sys.argv[2] == "masked"

def run(n):
    q, k, v = (torch.randn(1, 8, n, 64).requires_grad_(backward) for _ in range(3))
    taps = torch.randn(8, 33).requires_grad_(backward)
    grad = torch.ones_like(q) if backward else None
    mask = (torch.arange(n) < n - 5)[None] if masked else None
    before = peak()
    options = {"num_landmarks": 256, "conv_weight": taps, "mask": mask, "backend": sys.argv[3]}
    output = nystrom_attention(q, k, v, **options)
    if backward:
        output.backward(grad)
    return (peak() - before) / (q.numel() * 4)

run(1024)
print(run(65536))
"""


@pytest.mark.parametrize("masked", ["unmasked", "masked"])
@pytest.mark.parametrize(("direction", "limit"), [("forward", 2), ("backward", 6)])
def test_blocked_memory_grows_by_few_input_sized_tensors(direction, limit, masked):
    """N = 65,536, M = 256, 8 heads of 64, float32, convolution; output and gradients count."""
    assert number_printed(MEASURE, direction, masked, "blocked") <= limit


def test_the_memory_measure_sees_the_tables_of_eager():
    assert number_printed(MEASURE, "forward", "unmasked", "eager") > 6


LONG = [
    Case(n=2300, m=64, dim=64, value_dim=64, kernel=33, batch=1),
    Case(n=2300, m=96, dim=64, value_dim=48, kernel=7, masks="holes"),
    Case(n=1700, m=192, dim=64, value_dim=64, batch=1),
    Case(n=2300, n_k=2100, m=64, dim=64, value_dim=64, batch=1),
    Case(n=4200, m=160, dim=64, value_dim=64, kernel=33, batch=1),
]


def run(tensors, options, grad, backend):
    inputs = [*tensors, options["conv_weight"]]
    inputs = [x.detach().requires_grad_() for x in inputs if x is not None]
    options = {**options, "conv_weight": inputs[3] if len(inputs) > 3 else None}
    output = nystrom_attention(*inputs[:3], **options, backend=backend)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


@pytest.mark.parametrize("layout", ["heads first", "tokens first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_blocked_over_many_blocks_equals_float64(case, dtype, layout):
    tensors, options = make_inputs(case, dtype)
    grad = torch.randn(case.batch, case.heads, case.n, case.value_dim, dtype=dtype)
    doubled = {
        k: x.double() if k == "conv_weight" and x is not None else x for k, x in options.items()
    }
    expected = run([x.double() for x in tensors], doubled, grad.double(), "eager")
    assert_close(expected[0], from_oracle(tensors, options), 1e-11)
    if layout == "tokens first":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    got = run(tensors, options, grad, "blocked")
    assert_close(got[0], expected[0], TOLERANCE[dtype])
    for i, (g, e) in enumerate(zip(got[1:], expected[1:], strict=True)):
        assert_close(g, e, 3 * TOLERANCE[dtype], f"gradient {i}")


def test_gradients_keep_their_digits_where_kernel_2_is_near_rank_one():
    """Long segments of noise have means alike."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, 4096, 64) for _ in range(3)]
    options = {"num_landmarks": 64, "conv_weight": None}
    grad = torch.randn(1, 2, 4096, 64)
    expected = run([x.double() for x in tensors], options, grad.double(), "eager")
    _, *got, _ = run(tensors, options, grad, "blocked")
    for of_input, exact in zip(got, expected[1:3], strict=True):
        assert relative_error(of_input, exact) < 6e-6


@pytest.mark.parametrize("masks", [None, "holes"])
def test_blocked_operation_passes_opcheck(masks):
    """Schema, fake tensors and autograd registration, as torch.compile and export need them."""
    tensors, options = make_inputs(Case(n=40, m=8, kernel=5, masks=masks), torch.float32)
    q, k, v = (x.requires_grad_() for x in tensors)
    taps, mask = options["conv_weight"].requires_grad_(), options["mask"]
    arguments = (q, k, v, mask, mask, taps, None, None, 8, 0.25, 6, "matrix", None)
    torch.library.opcheck(blocked_forward, arguments)


def test_blocked_saves_nothing_that_grows_with_n():
    (q, k, v), _ = make_inputs(Case(n=500, m=8, dim=4, value_dim=4))
    saved = []

    def pack(x):
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        nystrom_attention(q.requires_grad_(), k, v, num_landmarks=8, backend="blocked")
    inputs = {x.data_ptr() for x in (q, k, v)}
    rest = [x for x in saved if x.data_ptr() not in inputs]
    assert rest, "the small tensors are saved"
    assert all(x.shape[2] == 8 for x in rest)


@pytest.mark.parametrize(("queries", "keys"), [(5, 40), (40, 5), (5, 5)])
def test_given_landmarks_that_took_no_part_have_no_gradient(queries, keys):
    """Up to M queries or keys are their own landmarks."""
    q, k, v = (torch.randn(1, 2, n, 8) for n in (queries, keys, keys))
    landmarks = tuple(torch.randn(1, 2, 6, 8).requires_grad_() for _ in range(2))
    output = nystrom_attention(q, k, v, landmarks=landmarks, backend="blocked")
    torch.testing.assert_close(output, torch.softmax(q @ k.mT / 8**0.5, -1) @ v)
    grads = torch.autograd.grad(output.sin().sum(), landmarks)
    assert not any(x.any() for x in grads)


def test_blocked_refuses_a_second_derivative():
    q = torch.randn(1, 2, 50, 8, requires_grad=True)
    output = nystrom_attention(q, q, q, num_landmarks=8, backend="blocked")
    (grad,) = torch.autograd.grad(output.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*backend='eager'"):
        grad.sum().backward()


def test_blocked_keeps_the_memory_order_of_its_inputs():
    """So that heads merge without a copy, in the module and in its backward."""
    q = torch.randn(2, 50, 4, 8, requires_grad=True)
    heads = q.transpose(1, 2)
    output = nystrom_attention(heads, heads, heads, num_landmarks=8, backend="blocked")
    assert output.transpose(1, 2).is_contiguous()
    contiguous = heads.contiguous()
    output = nystrom_attention(contiguous, contiguous, contiguous, num_landmarks=8)
    assert output.is_contiguous()


def test_logits_of_bfloat16_keep_what_one_rounded_product_loses():
    a, b = (torch.randn(2, 40, 64).bfloat16() for _ in range(2))
    table = Workspace(a, torch.float32).logits(a, b.mT, "logits")
    exact = a.double() @ b.double().mT
    assert table.dtype == torch.float32
    assert relative_error(table, exact) < 1e-4
    assert relative_error((a @ b.mT), exact) > 1e-3
