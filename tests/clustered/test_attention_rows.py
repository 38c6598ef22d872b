import pytest
import torch

from cases import assert_close
from clustered.test_attention import CASES, cases, expected_map, inputs
from nystromer import clustered_attention, clustered_attention_rows


@cases
def test_clustered_attention_rows_equal_the_oracle(case):
    (q, k, _), kwargs = inputs(case)
    rows = torch.randint(q.shape[2], (9,))
    got = clustered_attention_rows(q, k, rows, **kwargs)
    assert_close(got, expected_map((q, k), kwargs["mask"], case[1])[:, :, rows], 1e-12)


def test_clustered_attention_rows_are_what_multiplies_value():
    (q, k, v), kwargs = inputs(CASES[8])
    weights = clustered_attention_rows(q, k, range(q.shape[2]), **kwargs)
    assert_close(weights @ v, clustered_attention(q, k, v, **kwargs), 1e-12)
    assert weights.min() >= 0
    real = kwargs["mask"][:, None].expand(weights.shape[:3])
    assert_close(weights.sum(-1)[real], torch.ones(int(real.sum())), 1e-12)


def test_clustered_attention_rows_errors():
    q = torch.randn(1, 2, 100, 8)
    bad = [
        ((q, q, [100]), {}, ValueError, r"`rows` must lie in 0 ... 99"),
        ((q[:, :, :9], q, [0]), {}, ValueError, "of the same tokens"),
        ((q, q, [0]), {"num_exact_keys": 0}, ValueError, "`num_exact_keys` must be at least 1"),
    ]
    for args, kwargs, error, message in bad:
        with pytest.raises(error, match=message):
            clustered_attention_rows(*args, **kwargs)


def test_clustered_attention_rows_compile_and_export_without_a_mask():
    class Rows(torch.nn.Module):
        def forward(self, q):
            return clustered_attention_rows(
                q, q, [0, 9], num_query_clusters=4, num_key_clusters=4, num_exact_keys=8
            )

    torch._dynamo.reset()
    q = torch.randn(2, 2, 90, 8)
    expected = Rows()(q)
    assert_close(torch.compile(Rows(), fullgraph=True, backend="aot_eager")(q), expected, 1e-6)
    assert_close(torch.export.export(Rows(), (q,)).module()(q), expected, 1e-6)


def test_clustered_attention_rows_take_no_batch_and_no_rows():
    q = torch.randn(0, 2, 90, 8)
    assert clustered_attention_rows(q, q, [0]).shape == (0, 2, 1, 90)
    q = torch.randn(2, 2, 90, 8)
    assert clustered_attention_rows(q, q, []).shape == (2, 2, 0, 90)
