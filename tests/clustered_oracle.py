"""Clustered attention in NumPy float64, a head and a pair at a time. Imports nothing of ours."""

import numpy as np

from oracle import softmax


def leading(x, steps=16):
    square = x.T @ x
    u = square[np.argmax(np.diag(square))]
    for _ in range(steps):
        u = square @ u
        u = u / max(np.linalg.norm(u), 1e-30)
    return -u if u.sum() < 0 else u


def directions(x, levels, sample=1024):
    """Of every part, level after level, from the sample alone."""
    count = min(len(x), max(sample, 2**levels)) // 2**levels * 2**levels
    parts, found = [x[[i * len(x) // count for i in range(count)]]], []
    for _ in range(levels):
        centred = [part - part.mean(0) for part in parts]
        found.append([leading(part) for part in centred])
        halves = []
        for part, c, u in zip(parts, centred, found[-1], strict=True):
            ranked = part[np.argsort(c @ u, kind="stable")]
            halves += [ranked[: len(part) // 2], ranked[len(part) // 2 :]]
        parts = halves
    return found


def clusters(x, count):
    """Lists of token indices: 2^levels of them, halves of halves."""
    levels = int(np.log2(min(len(x), count)))
    size = -(-len(x) // 2**levels)
    parts, slots = [list(range(len(x)))], size * 2**levels
    for found in directions(x, levels):
        halves = []
        for part, u in zip(parts, found, strict=True):
            ranked = [part[i] for i in np.argsort(x[part] @ u, kind="stable")]
            left = slots // 2 - (slots - len(part)) // 2
            halves += [ranked[:left], ranked[left:]]
        parts, slots = halves, slots // 2
    return parts


def attention_row(q, q_tilde, k, key_clusters, exact_keys):
    """The weights of all keys for one query (already times the scale) of one cluster."""
    logits = np.empty(len(k))
    for cluster in key_clusters:
        k_tilde = k[cluster].mean(0)
        logits[cluster] = k[cluster] @ q_tilde + q @ k_tilde - q_tilde @ k_tilde
    exact = np.argsort(-(k @ q_tilde))[:exact_keys]
    logits[exact] = k[exact] @ q
    return softmax(logits)


def attention_map(q, k, budget, scale, mask=None):
    """[B, H, N, N]; budget: G, M, T."""
    batch, heads, n, _ = q.shape
    groups, slots, exact_keys = budget
    mask = np.ones((batch, n), bool) if mask is None else mask
    out = np.zeros((batch, heads, n, n))
    for b, h in np.ndindex(batch, heads):
        real = np.flatnonzero(mask[b])
        qr, kr = scale * q[b, h, real], k[b, h, real]
        if len(real) <= slots + exact_keys:
            if len(real):
                out[b, h][np.ix_(real, real)] = softmax(qr @ kr.T)
            continue
        key_clusters = clusters(kr, slots)
        for cluster in clusters(qr, groups):
            q_tilde = qr[cluster].mean(0)
            for i in cluster:
                row = attention_row(qr[i], q_tilde, kr, key_clusters, exact_keys)
                out[b, h, real[i], real] = row
    return out


def clustered_attention(q, k, v, budget, scale, mask=None):
    if mask is not None:
        v = np.where(mask[:, None, :, None], v, 0.0)
    return attention_map(q, k, budget, scale, mask) @ v
