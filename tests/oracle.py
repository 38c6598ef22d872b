"""The paper's equations in NumPy float64, one head at a time. Imports nothing of ours."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def segment_means(x, m):  # eq. 16, [L, D] -> [M, D]
    s = len(x) // m
    sizes = [s] * ((s + 1) * m - len(x)) + [s + 1] * (len(x) - s * m)
    return np.stack([part.mean(0) for part in np.split(x, np.cumsum(sizes)[:-1])])


def start_norm(a):  # ‖A‖_1 and ‖A‖_inf
    return np.array([np.abs(a).sum(0).max(), np.abs(a).sum(1).max()])


def pinv(a, steps, norms):  # eq. 14
    z, i = a.T / norms.prod(), np.eye(len(a))
    for _ in range(steps):
        z = 0.25 * z @ (13 * i - a @ z @ (15 * i - a @ z @ (7 * i - a @ z)))
    return z


def ridge_pinv(a, ridge):  # (AᵀA + r I)⁻¹ Aᵀ
    return np.linalg.inv(a.T @ a + ridge * np.eye(len(a))) @ a.T


def convolution(v, taps):  # sum_t taps[t] v[i + t - K // 2], [N, Dv], [K]
    half = len(taps) // 2
    padded = np.pad(v, ((half, half), (0, 0)))
    return sum(tap * padded[t : t + len(v)] for t, tap in enumerate(taps))


def attention_map(
    q, k, m, scale, steps=6, init="matrix", ridge=None, mask=None, query_mask=None, landmarks=None
):
    """The map that multiplies V, [B, H, Nq, Nk]: eq. 15, or the exact one where L <= M."""
    batch, heads = q.shape[:2]
    mask = np.ones((batch, k.shape[2]), bool) if mask is None else mask
    query_mask = np.ones((batch, q.shape[2]), bool) if query_mask is None else query_mask
    out, factors, norms = np.zeros((batch, heads, q.shape[2], k.shape[2])), {}, {}
    for b, h in np.ndindex(batch, heads):
        qr, kr = q[b, h, query_mask[b]], k[b, h, mask[b]]
        if 0 in (len(qr), len(kr)):
            continue
        if min(len(qr), len(kr)) <= m:
            out[b, h][np.ix_(query_mask[b], mask[b])] = softmax(scale * qr @ kr.T)
            continue
        if landmarks is None:
            ql, kl = segment_means(qr, m), segment_means(kr, m)
        else:
            ql, kl = landmarks[0][b, h], landmarks[1][b, h]
        factors[b, h] = [softmax(scale * x @ y.T) for x, y in ((qr, kl), (ql, kl), (ql, kr))]
        norms[b, h] = start_norm(factors[b, h][1])
    for b, h in factors:
        over = {
            "matrix": [(b, h)],
            "sequence": [(b, other) for other in range(heads)],
            "batch": list(norms),
        }[init]
        kernel_1, kernel_2, kernel_3 = factors[b, h]
        if ridge is None:
            inverse = pinv(kernel_2, steps, np.max([norms[x] for x in over], 0))
        else:
            inverse = ridge_pinv(kernel_2, ridge)
        out[b, h][np.ix_(query_mask[b], mask[b])] = kernel_1 @ inverse @ kernel_3
    return out


def nystrom_attention(
    q, k, v, m, scale, steps=6, init="matrix", ridge=None, mask=None, query_mask=None,
    conv_weight=None, landmarks=None,
):  # fmt: skip
    if query_mask is None and q.shape[2] == k.shape[2]:
        query_mask = mask
    if mask is not None:
        v = v * mask[:, None, :, None]
    out = attention_map(q, k, m, scale, steps, init, ridge, mask, query_mask, landmarks) @ v
    if conv_weight is not None:
        for b, h in np.ndindex(*v.shape[:2]):
            out[b, h] += convolution(v[b, h], conv_weight[h])
    if query_mask is not None:
        out = out * query_mask[:, None, :, None]
    return out
