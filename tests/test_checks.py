"""What nystrom_attention refuses, and the sentence it says."""

import pytest
import torch

from nystromer import nystrom_attention
from nystromer.landmarks import segment_means


def test_nystrom_attention_errors():
    q = torch.randn(2, 4, 100, 16)
    ones = torch.ones(2, 100, dtype=torch.bool)
    bad = [
        ((q[0], q, q), {}, ValueError, r"or all \[H, N, D\] .* `query` \[4, 100, 16\], `key` \[2"),
        ((q[0, 0, 0],) * 3, {}, ValueError, r"must be \[B, H, N, D\], .*, got `query` \[16\]"),
        ((q.tolist(), q, q), {}, TypeError, "`query` must be a tensor, got list"),
        ((q, q[:, :2], q[:, :2]), {}, ValueError, "must agree in B, H and D"),
        ((q, q[..., :8], q), {}, ValueError, "must agree in B, H and D"),
        ((q, q, q[:, :, :50]), {}, ValueError, "must agree in B, H and Nk"),
        ((q, q.double(), q), {}, ValueError, "share one dtype, got `query` torch.float32"),
        ((q, q, q.to("meta")), {}, ValueError, "share one device, got `key` cpu, `value` meta"),
        ((q.int(), q.int(), q), {}, TypeError, "must be floating point, got torch.int32"),
        ((q, q, q), {"num_landmarks": 0}, ValueError, "`num_landmarks` must be at least 1, got 0"),
        ((q, q, q), {"num_landmarks": 6.5}, TypeError, "`num_landmarks` must be an int, got float"),
        ((q, q, q), {"pinv_iterations": 0}, ValueError, "`pinv_iterations` must be at least 1"),
        ((q, q, q), {"pinv_ridge": 0.0}, ValueError, "a number of at least 1e-10, got 0.0; 0.01"),
        ((q, q, q), {"pinv_ridge": float("inf")}, ValueError, "at least 1e-10, got inf"),
        ((q, q, q), {"pinv_ridge": "x"}, ValueError, "a number of at least 1e-10, got 'x'"),
        ((q, q, q), {"pinv_init": ["matrix"]}, ValueError, r"must be one of .* got \['matrix'\]"),
        ((q, q, q), {"scale": torch.ones(())}, TypeError, "a number, got Tensor; multiply query"),
        ((q, q, q), {"scale": "a"}, TypeError, "`scale` must be a number, got str"),
        (
            (q, q, q),
            {"mask": ones[:, None, None]},
            ValueError,
            r"\[2, 100\], got \[2, 1, 1, 100\]; write mask=mask\[:, 0, 0\]\.",
        ),
        ((q, q, q), {"pinv_init": "best"}, ValueError, "must be one of 'matrix', .* got 'best'"),
        ((q, q, q), {"mask": ones.float()}, ValueError, "`mask` must be bool .* got torch.float32"),
        ((q, q, q), {"mask": ones[:, :9]}, ValueError, r"must have shape .* \[2, 100\], got"),
        ((q, q, q), {"mask": [True]}, TypeError, "`mask` must be a bool tensor .* got list"),
        ((q, q, q), {"mask": ones.to("meta")}, ValueError, "`mask` is on meta, the tokens on cpu"),
        (
            (q, q, q),
            {"mask": torch.ones(100, 100, dtype=torch.bool).tril()},
            ValueError,
            "mask of query-key pairs .* impossible here",
        ),
        ((q, q, q), {"query_mask": ones[:, :9]}, ValueError, "`query_mask` must have shape"),
        ((q, q, q), {"conv_weight": torch.ones(4, 2)}, ValueError, r"\[4, odd\], got \[4, 2\]"),
        ((q, q, q), {"conv_weight": torch.ones(3, 3)}, ValueError, r"\[4, odd\], got \[3, 3\]"),
        ((q, q, q), {"conv_weight": [1.0]}, TypeError, "`conv_weight` must be a tensor"),
        (
            (q, q, q),
            {"conv_weight": torch.ones(4, 3).double()},
            ValueError,
            "share one dtype, got `query` torch.float32, `conv_weight` torch.float64",
        ),
        (
            (q[:, :, :50], q, q),
            {"conv_weight": torch.ones(4, 3)},
            ValueError,
            "needs self-attention .* 50 queries and 100 keys",
        ),
        ((q, q, q), {"landmarks": q}, TypeError, "`landmarks` must be a pair"),
        ((q, q, q), {"landmarks": (q, q[:, :, :9])}, ValueError, "with the same M, got"),
        ((q, q, q), {"landmarks": segment_means(q, 9)}, ValueError, "pass the first of each"),
        (
            (q, q, q),
            {"landmarks": (q.int(), q.int())},
            ValueError,
            "must be floating point on cpu, got torch.int32",
        ),
        ((q, q, q), {"backend": "cuda"}, ValueError, "one of 'auto', 'eager', .* got 'cuda'"),
        ((q, q, q), {"is_causal": True}, ValueError, "impossible with Nyström attention"),
    ]
    for args, options, error, message in bad:
        with pytest.raises(error, match=message):
            nystrom_attention(*args, **options)
