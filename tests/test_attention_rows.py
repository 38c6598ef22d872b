import pytest
import torch

import oracle
from cases import CASES, Case, assert_close, make_inputs
from nystromer import nystrom_attention, nystrom_attention_rows
from nystromer.attention_rows import BLOCK, weighted_attention_rows


@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.given_landmarks and not c.own_query_mask], ids=str
)
def test_nystrom_attention_rows_equal_oracle(case):
    (q, k, _), options = make_inputs(case)
    rows = [0, case.n // 2, case.n - 1, 0]
    settings = {key: options[key] for key in ("num_landmarks", "mask", *case.settings)}
    got = nystrom_attention_rows(q, k, rows, **settings)
    mask = None if options["mask"] is None else options["mask"].numpy()
    expected = oracle.attention_map(
        q.numpy(),
        k.numpy(),
        case.m,
        options.get("scale", case.dim**-0.5),
        options.get("pinv_iterations", 6),
        options.get("pinv_init", "matrix"),
        options.get("pinv_ridge"),
        mask,
        mask if case.n_k is None else None,
    )
    assert_close(got, torch.from_numpy(expected[:, :, rows]), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nystrom_attention_rows_times_values_are_the_outputs(dtype):
    n = 2 * BLOCK + 77
    q, k, v = torch.randn(3, 1, 2, n, 16, dtype=dtype)
    rows = torch.tensor([0, 5, n - 1])
    got = nystrom_attention_rows(q, k, rows, num_landmarks=32)
    assert got.dtype == dtype
    expected = nystrom_attention(q, k, v, num_landmarks=32)[:, :, rows].double()
    assert_close(got.double() @ v.double(), expected, 1e-5 if dtype == torch.float32 else 2e-2)


def test_nystrom_attention_rows_ignore_what_padding_holds():
    (q, k, _), _ = make_inputs(Case(n=90, m=16))
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[:, 70:] = False
    expected = nystrom_attention_rows(q, k, [3, 80], num_landmarks=16, mask=mask)
    assert expected[:, :, 1].abs().max() == 0, "the row of a padding token"
    assert expected[..., 70:].abs().max() == 0
    q[:, :, 70:] = k[:, :, 70:] = torch.nan
    got = nystrom_attention_rows(q, k, [3, 80], num_landmarks=16, mask=mask)
    assert torch.equal(got, expected)


def test_nystrom_attention_rows_have_gradients():
    (q, k, _), _ = make_inputs(Case(n=20, m=4, dim=3))
    q, k = q.requires_grad_(), k.requires_grad_()
    torch.autograd.gradcheck(
        lambda q, k: nystrom_attention_rows(q, k, [0, 7], num_landmarks=4), (q, k), fast_mode=True
    )


def test_nystrom_attention_rows_take_no_keys_and_no_rows():
    q = torch.randn(2, 2, 40, 8)
    assert nystrom_attention_rows(q, q[:, :, :0], [0, 1], num_landmarks=8).shape == (2, 2, 2, 0)
    assert nystrom_attention_rows(q, q, [], num_landmarks=8).shape == (2, 2, 0, 40)


def test_nystrom_attention_rows_under_autocast_are_those_of_the_outputs():
    q, k, v = torch.randn(3, 1, 2, 200, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = nystrom_attention_rows(q, k, range(200), num_landmarks=8)
        output = nystrom_attention(q, k, v, num_landmarks=8, backend="eager")
        other = nystrom_attention_rows(q, k.bfloat16(), range(200), num_landmarks=8)
    assert rows.dtype == torch.bfloat16
    assert_close(rows.float() @ v, output.float(), 2e-2)
    assert torch.equal(rows, other)


def test_nystrom_attention_rows_errors():
    q = torch.randn(2, 4, 30, 16)
    bad = [
        ([30], {}, ValueError, r"`rows` must lie in 0 ... 29 \(N = 30 queries\), got 30 ... 30"),
        ([-1, 2], {}, ValueError, r"`rows` must lie in 0 ... 29 .* got -1 ... 2"),
        ([0.5], {}, ValueError, "`rows` must be a list of ints .* got torch.float32"),
        (None, {}, TypeError, "`rows` must be a list of ints .* got None"),
        (torch.zeros(1, 2).long(), {}, ValueError, r"of shape \[1, 2\]"),
        ([0], {"num_landmarks": 0}, ValueError, "`num_landmarks` must be at least 1"),
        ([0], {"pinv_init": "x"}, ValueError, "`pinv_init` must be one of"),
        ([0], {"mask": torch.ones(2, 9).bool()}, ValueError, "`mask` must have shape"),
    ]
    for rows, options, error, message in bad:
        with pytest.raises(error, match=message):
            nystrom_attention_rows(q, q, rows, **options)
    with pytest.raises(ValueError, match="must agree in B, H and D"):
        nystrom_attention_rows(q, q[:1], [0])


class Rows(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, q, mask=None):
        return nystrom_attention_rows(q, q, self.rows, num_landmarks=16, mask=mask)


def case_of_rows(masked, n=50):
    """One sequence of 50 tokens; one of 9, which is exact, if masked."""
    q = torch.randn(2, 2, n, 8)
    return (q, torch.arange(n) < torch.tensor([[n], [9]])) if masked else (q,)


@pytest.mark.parametrize("rows", [[0, 7], torch.tensor([0, 7])], ids=["list", "tensor"])
@pytest.mark.parametrize("masked", [False, True])
def test_nystrom_attention_rows_compile_without_a_graph_break(masked, rows):
    torch._dynamo.reset()
    (q, *mask), module = case_of_rows(masked), Rows(rows)
    q.requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got, expected = compiled(q, *mask), module(q, *mask)
    assert_close(got, expected, 1e-6)
    both = (torch.autograd.grad(x.sin().sum(), q)[0] for x in (got, expected))
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_nystrom_attention_rows_export_with_any_length(masked):
    length = torch.export.Dim("length", min=8, max=8192)
    shapes = ({2: length}, {1: length}) if masked else ({2: length},)
    module = Rows([0, 7])
    program = torch.export.export(module, case_of_rows(masked), dynamic_shapes=shapes).module()
    for n in (10, 50, 2 * BLOCK + 5):
        inputs = case_of_rows(masked, n)
        assert_close(program(*inputs), module(*inputs), 1e-6)


def test_rows_of_a_list_are_checked_where_they_are_compiled():
    compiled = torch.compile(Rows([50]), backend="aot_eager")
    with pytest.raises(Exception, match=r"`rows` must lie in 0 ... 49"):
        compiled(*case_of_rows(False))


@pytest.mark.parametrize("n", [5, 32, 100])
@pytest.mark.parametrize("init", ["matrix", "sequence"])
def test_weighted_attention_rows_are_sums_of_rows(n, init, monkeypatch):
    monkeypatch.setattr("nystromer.attention_rows.BLOCK", 32)
    q, k = torch.randn(2, 2, 2, n, 8, dtype=torch.float64)
    weights = torch.randn(2, 3, n, dtype=torch.float64)
    mask = torch.rand(2, n) < 0.8
    mask[1, 4:] = False
    for real in (None, mask):
        settings = {"num_landmarks": 7, "mask": real, "pinv_init": init, "scale": 0.3}
        rows = nystrom_attention_rows(q, k, range(n), **settings)
        got = weighted_attention_rows(q, k, weights, **settings)
        torch.testing.assert_close(got, weights[:, None] @ rows, rtol=1e-9, atol=1e-11)


def test_weighted_attention_rows_refuse_other_weights():
    q = torch.randn(2, 2, 9, 8)
    for shape in ([2, 9], [1, 1, 9], [2, 1, 8]):
        with pytest.raises(ValueError, match=r"must be \[B, R, N\] with B = 2 and N = 9 rows"):
            weighted_attention_rows(q, q, torch.randn(shape))
