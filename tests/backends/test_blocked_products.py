"""Large products of `blocked`, which oneDNN makes: as many heads, tokens and landmarks as it takes
for them to be large, against float64."""

import pytest
import torch

from cases import TOLERANCE, Case, assert_close, from_oracle, make_inputs, relative_error
from nystromer import nystrom_attention
from nystromer.backends.blocked import operation, products
from nystromer.backends.blocked.sequences import all_tokens

WITH_ONEDNN = products.present(torch.ones(1))
LARGE = [
    Case(n=2300, m=64, dim=64, value_dim=64, kernel=33, batch=1),
    Case(n=2300, m=96, dim=64, value_dim=48, kernel=7, masks="holes"),
    Case(n=1700, m=192, dim=64, value_dim=64, batch=1),
    Case(n=2300, n_k=2100, m=64, dim=64, value_dim=64, batch=1),
    Case(n=4200, m=160, dim=64, value_dim=64, kernel=33, batch=1),
]


@pytest.fixture
def made(monkeypatch):
    """What was given to oneDNN."""
    calls, product = [], products.product

    def noted(a, b, plus=None, times=None):
        calls.append((a, b, plus, times))
        return product(a, b, plus, times)

    monkeypatch.setattr(products, "product", noted)
    return calls


def run(tensors, options, grad, backend):
    inputs = [*tensors, options["conv_weight"]]
    inputs = [x.detach().requires_grad_() for x in inputs if x is not None]
    options = {**options, "conv_weight": inputs[3] if len(inputs) > 3 else None}
    output = nystrom_attention(*inputs[:3], **options, backend=backend)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


@pytest.mark.parametrize("layout", ["heads first", "tokens first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_blocked_with_large_products_equals_float64(case, dtype, layout, made):
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
    assert bool(made) == WITH_ONEDNN
    assert all(a.is_contiguous() for a, *_ in made), "oneDNN would copy it for every product"
    assert_close(got[0], expected[0], TOLERANCE[dtype])
    for i, (g, e) in enumerate(zip(got[1:], expected[1:], strict=True)):
        assert_close(g, e, 3 * TOLERANCE[dtype], f"gradient {i}")


@pytest.mark.skipif(not WITH_ONEDNN, reason="needs AVX-512")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_product_adds_and_multiplies_before_it_rounds(dtype):
    a, b = torch.randn(1, 300, 64, dtype=dtype), torch.randn(1, 48, 64, dtype=dtype).mT
    plus, times = torch.randn(1, 1, 48, dtype=dtype), torch.randn(1, 300, 48, dtype=dtype)
    wide = [x.double() for x in (a, b, plus, times)]
    limit = 1e-6 if dtype == torch.float32 else 2**-8
    assert relative_error(products.product(a, b), wide[0] @ wide[1]) < limit
    sums = wide[0] @ wide[1] + wide[2]
    assert relative_error(products.product(a, b, plus), sums) < limit
    assert relative_error(products.product(a, b, plus, times), sums * wide[3]) < limit


@pytest.mark.skipif(not WITH_ONEDNN, reason="needs AVX-512")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "m", "dim"), [(64, 3, 5), (4096, 160, 64), (8192, 67, 61)])
def test_contraction_sums_over_tokens(n, m, dim, threads):
    a, b = torch.randn(1, n, m).mT, torch.randn(1, n, dim)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = products.contraction(a, b)
    finally:
        torch.set_num_threads(before)
    assert relative_error(found, a.double() @ b.double()) < 2e-6


def test_only_large_sums_over_tokens_are_contractions():
    a, b = torch.ones(1, 4096, 128), torch.ones(1, 4096, 64)
    assert products.contracts(a.mT, b) == WITH_ONEDNN
    assert not products.contracts(torch.ones(1, 4096, 64).mT, b)
    assert not products.contracts(a.mT.contiguous(), b)
    assert not products.contracts(a[:, :-1].mT, b[:, :-1])
    assert not products.contracts(a.bfloat16().mT, b.bfloat16())
    assert not products.contracts(*(x.expand(2, -1, -1) for x in (a.mT, b)))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_without_onednn_torch_makes_all_products(made):
    tensors, options = make_inputs(LARGE[0], torch.float32)
    with torch.backends.mkldnn.flags(enabled=False):
        output = nystrom_attention(*tensors, **options, backend="blocked")
    assert not made
    assert_close(output, from_oracle(tensors, options), TOLERANCE[torch.float32])


def test_only_large_products_of_one_head_are_taken():
    wide = torch.ones(1, 2048, 64), torch.ones(1, 64, 64)
    assert products.takes(*wide) == WITH_ONEDNN
    assert not products.takes(wide[0][:, :128], wide[1])
    assert not products.takes(*(x.expand(2, -1, -1) for x in wide))
    assert not products.takes(*(x.double() for x in wide))
    assert not products.takes(*(x.to("meta") for x in wide))


def test_blocks_are_of_few_sizes():
    """A new size costs half a millisecond a product: a bag of patches has a length of its own."""
    sizes = {
        j - i for n in range(1000, 9000, 7) for i, j in all_tokens(n).blocks(4096) if j - i >= 512
    }
    assert sizes == {512 * i for i in range(1, 9)}


def test_large_products_go_head_by_head():
    """8 heads of 1,024 tokens: with 256 landmarks a product of one head is large enough."""
    query = torch.empty(1, 8, 1024, 64)
    heads = operation.ROWS_A_THREAD // 1024
    assert operation._workspace(query, [], False, 16).heads == heads > 1
    assert operation._workspace(query, [], False, 256).heads == (1 if WITH_ONEDNN else heads)
    half = torch.empty(1, 8, 2048, 64, dtype=torch.bfloat16)
    heads = operation.ROWS_OF_BFLOAT16 // 2048
    assert operation._workspace(half, [], False, 64).heads == heads > 1
    assert operation._workspace(half, [], False, 256).heads == (1 if WITH_ONEDNN else heads)


def test_gradients_keep_their_digits_where_kernel_2_is_near_rank_one():
    """Long segments of noise have means alike: Z' = Z Q as Q Zᵀ, for Q is symmetric, gives 9e-6."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, 4096, 64) for _ in range(3)]
    options = {"num_landmarks": 64, "conv_weight": None}
    grad = torch.randn(1, 2, 4096, 64)
    expected = run([x.double() for x in tensors], options, grad.double(), "eager")
    _, *got, _ = run(tensors, options, grad, "blocked")
    for of_input, exact in zip(got, expected[1:3], strict=True):
        assert relative_error(of_input, exact) < 6e-6
