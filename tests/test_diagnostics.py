import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import oracle
from nystromer import nystrom_attention
from nystromer.diagnostics import comparison, cost, diagnose, maps, spectrum


def drifting(n, heads=2, dim=8, seed=0):
    """Query, key and value whose features drift along the sequence, float64 [1, H, N, D]."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(3, 1, heads, n, dim, generator=generator, dtype=torch.float64)
    q, k, v = steps.cumsum(-2) / 3 + steps
    return q, k, v


def relative(x, wanted):
    return np.linalg.norm(x - wanted) / np.linalg.norm(wanted)


def with_padding(tensors, n):
    """The same tokens with NaN between and after them, and the mask that hides it."""
    mask = torch.zeros(1, n + 20, dtype=torch.bool)
    mask[:, 5 : n + 5] = True
    padded = []
    for x in tensors:
        y = x.new_full((*x.shape[:2], n + 20, x.shape[3]), torch.nan)
        y[:, :, mask[0]] = x
        padded.append(y)
    return padded, mask


def exact_map(q, k, scale):
    return oracle.softmax(scale * q.numpy() @ k.numpy().swapaxes(-1, -2))


def test_diagnose_errors_are_the_oracles():
    q, k, v = drifting(50)
    true = exact_map(q, k, 0.5)
    for found in diagnose(q, k, v, [4, 16], scale=0.5, pinv_iterations=5):
        near = oracle.attention_map(q.numpy(), k.numpy(), found.num_landmarks, 0.5, steps=5)
        assert found.map_error == pytest.approx(relative(near, true))
        assert found.output_error == pytest.approx(relative(near @ v.numpy(), true @ v.numpy()))


def test_diagnose_leaves_padding_out():
    tokens = drifting(50)
    padded, mask = with_padding(tokens, 50)
    assert diagnose(*padded, [4, 16], mask=mask) == diagnose(*tokens, [4, 16])
    torch.testing.assert_close(
        maps(*padded[:2], mask=mask, num_landmarks=4).approximation,
        maps(*tokens[:2], num_landmarks=4).approximation,
    )


def test_diagnose_masks_keys_alone_in_cross_attention():
    (q, _, _), (_, k, v) = drifting(40), drifting(50)
    (_, k_padded, v_padded), mask = with_padding((k, k, v), 50)
    assert diagnose(q, k_padded, v_padded, [4], mask=mask) == diagnose(q, k, v, [4])


def test_diagnose_inverse_is_eq_14_and_lemma_1():
    q, k, v = drifting(60)
    (found,) = diagnose(q, k, v, [6], scale=0.3)
    residuals, margins, conditions = [], [], []
    for head in range(2):
        a = oracle.softmax(
            0.3
            * oracle.segment_means(q[0, head].numpy(), 6)
            @ oracle.segment_means(k[0, head].numpy(), 6).T
        )
        projection, norms = a @ np.linalg.pinv(a), oracle.start_norm(a)
        iterates = [a @ oracle.pinv(a, j, norms) for j in range(25)]
        residuals.append([relative(x, projection) for x in iterates])
        margins.append(1 - np.linalg.norm(projection - iterates[0], 2))
        conditions.append(np.linalg.cond(a))
    np.testing.assert_allclose(found.inverse.residuals, np.max(residuals, 0), rtol=1e-5, atol=1e-9)
    assert found.inverse.margin == pytest.approx(min(margins))
    assert found.inverse.condition == pytest.approx(max(conditions))
    assert found.inverse.converges


def test_diagnose_inverse_takes_the_start_value_named():
    q, k, v = drifting(60)
    q[:, 1] *= 4
    own, shared = (diagnose(q, k, v, [6], pinv_init=x)[0].inverse for x in ("matrix", "sequence"))
    assert shared.residuals[0] > own.residuals[0]


def test_diagnose_few_tokens_are_exact():
    (found,) = diagnose(*drifting(12), [12])
    assert found.output_error < 1e-12
    assert found.map_error < 1e-12
    assert found.inverse is None


def test_diagnose_has_no_map_of_a_long_sequence(monkeypatch):
    monkeypatch.setattr(comparison, "MAP_LIMIT", 40)
    assert diagnose(*drifting(41), [8])[0].map_error is None


def test_cost_counts_the_products_that_run():
    q, k, v = (torch.randn(1, 3, n, d) for n, d in ((40, 8), (50, 8), (50, 5)))
    with FlopCounterMode(display=False) as counter:
        nystrom_attention(q, k, v, num_landmarks=7, pinv_iterations=4, backend="eager")
    found = cost(40, 50, 7, heads=3, head_dim=8, value_dim=5, pinv_iterations=4)
    assert found.multiplications == counter.get_total_flops() // 2
    with FlopCounterMode(display=False) as counter:
        torch.softmax(q @ k.mT, -1) @ v
    assert found.exact_multiplications == counter.get_total_flops() // 2
    assert found.table_bytes == 3 * (40 * 7 + 7 * 7 + 7 * 50) * 4
    assert found.exact_table_bytes == 3 * 40 * 50 * 4


def test_maps_are_the_oracles():
    q, k, _ = drifting(50)
    found = maps(q, k, head=1, num_landmarks=8, scale=0.3)
    near = oracle.attention_map(q.numpy(), k.numpy(), 8, 0.3)[0, 1]
    true = exact_map(q, k, 0.3)[0, 1]
    np.testing.assert_allclose(found.approximation, near, atol=1e-12)
    np.testing.assert_allclose(found.exact, true, atol=1e-12)
    assert found.error == pytest.approx(relative(near, true))


def test_spectrum_is_numpys_and_bounds_the_error():
    q, k, v = drifting(50)
    found, true = spectrum(q, k), exact_map(q, k, 8**-0.5)
    u, values, vh = np.linalg.svd(true)
    np.testing.assert_allclose(found.singular_values, values[0], atol=1e-12)
    best = u[..., :8] * values[..., None, :8] @ vh[..., :8, :]
    assert found.best_error(8) == pytest.approx(relative(best, true))
    assert found.best_error(8) < diagnose(q, k, v, [8])[0].map_error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: diagnose(q, q, q, []), "must list at least one M, got none"),
        (lambda q: diagnose(q, q, q, [0]), "`num_landmarks` must be at least 1, got 0"),
        (lambda q: diagnose(q.repeat(2, 1, 1, 1), *[q.repeat(2, 1, 1, 1)] * 2, [4]), "got 2 of"),
        (lambda q: diagnose(q, q, q[:, :, 1:], [4]), "must agree in B, H and Nk"),
        (lambda q: diagnose(q, q, q, [4], mask=torch.zeros(1, 9).bool()), "has no real token"),
        (lambda q: diagnose(q, q, q, [4], mask=torch.ones(1, 8).bool()), r"must have shape \[B, N"),
        (lambda q: diagnose(q, q, q, [4], pinv_init="x"), "`pinv_init` must be one of"),
        (lambda q: maps(q, q, head=2), r"`head` must lie in 0 \.\.\. 1, got 2"),
        (lambda q: maps(q, q, num_landmarks=0), "`num_landmarks` must be at least 1"),
        (lambda q: maps(*[q.repeat(1, 1, 500, 1)] * 2), "at most 4096 real tokens, got 4500"),
        (lambda q: spectrum(*[q.repeat(1, 1, 500, 1)] * 2), "at most 4096 real tokens, got 4500"),
    ],
)
def test_diagnostics_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(drifting(9)[0])
