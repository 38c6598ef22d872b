"""Cases of the operation, each cut into parts; run in every process by `gloo.py`."""

import torch
import torch.distributed as dist

from cases import BACKENDS, CASES, Case, dtypes, make_inputs, widest
from nystromer import distributed

BIG = [
    Case(n=700, m=32, kernel=33, batch=1, dim=24, value_dim=40),
    Case(n=700, m=64, kernel=65, batch=2, masks="holes"),
    Case(n=300, m=200, kernel=33, batch=2, masks="right"),
    Case(n=600, n_k=500, m=48, batch=2, masks="left"),
]
CUT = [case for case in CASES if not case.given_landmarks] + BIG
FEW = [case for case in CUT if case.n in (64, 70) or case in BIG[:2]]  # in every dtype
FEWER = [case for case in FEW if case.n == 64 or case.masks == "short"][:3]  # interpreted


def combinations():
    """(backend, dtype, case) of all calls."""
    for backend in BACKENDS:
        for dtype in dtypes(backend):
            wide = dtype == widest(backend)
            for case in FEWER if backend == "triton" else CUT if wide else FEW:
                yield backend, dtype, case


def lengths(n, size, pattern):
    """n tokens in parts: even ones, none in the first, none in the last, or few in the middle."""
    if pattern == 0:
        return [n * (i + 1) // size - n * i // size for i in range(size)]
    if pattern == 1:
        return [0, *lengths(n, size - 1, 0)]
    few = min(n, 3)
    if pattern == 2:
        return [n - few, few, *[0] * (size - 2)]
    return [n // 3, n - n // 3] if size == 2 else [(n - few) // 2, few, n - few - (n - few) // 2]


def part_of(x, dim, n, pattern):
    """This process's part of a tensor, of n tokens along a dimension."""
    if x is None:
        return None
    return x.split(lengths(n, dist.get_world_size(), pattern), dim)[dist.get_rank()]


def inputs(case, dtype):
    """Tensors with NaN at padding, options, and the weights of a loss."""
    (q, k, v), options = make_inputs(case, dtype)
    weights = torch.randn(*q.shape[:3], v.shape[3], generator=torch.Generator().manual_seed(1))
    mask, query_mask = options["mask"], options["query_mask"]
    query_mask = mask if query_mask is None and q.shape[2] == k.shape[2] else query_mask
    if query_mask is not None:
        q = q.masked_fill(~query_mask[:, None, :, None], torch.nan)
    if mask is not None:
        k, v = (x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (k, v))
    options.pop("landmarks")
    return (q, k, v), options, weights


def attention():
    """Output and gradients of this process's part, for every combination."""
    found = []
    for i, (backend, dtype, case) in enumerate(combinations()):
        (q, k, v), options, weights = inputs(case, dtype)
        n, n_k, pattern = q.shape[2], k.shape[2], i % 4
        for name, length in (("mask", n_k), ("query_mask", n)):
            options[name] = part_of(options[name], 1, length, pattern)
        sides = ((q, n), (k, n_k), (v, n_k))
        leaves = [part_of(x, 2, length, pattern).requires_grad_() for x, length in sides]
        if options["conv_weight"] is not None:
            leaves.append(options["conv_weight"].requires_grad_())
        output = distributed.nystrom_attention(*leaves[:3], backend=backend, **options)
        loss = (output.double() * part_of(weights, 2, n, pattern)).sum()
        found.append([output.detach(), *torch.autograd.grad(loss, leaves)])
    return found


def row_inputs(case):
    """Queries and keys in float64, and options."""
    (q, k, _), options, _ = inputs(case, torch.float64)
    if case.own_query_mask or q.shape[2] != k.shape[2]:
        q = q.nan_to_num()  # rows know no mask of queries
    return (q, k), {"num_landmarks": case.m, "mask": options["mask"], **case.settings}


def places(query):
    n = query.shape[2]
    return [0, n // 2, n - 1]


def rows():
    """This process's columns of some rows, for every case."""
    found = []
    for i, case in enumerate(CUT):
        (q, k), options = row_inputs(case)
        options["mask"] = part_of(options["mask"], 1, k.shape[2], i % 4)
        parts = part_of(q, 2, q.shape[2], i % 4), part_of(k, 2, k.shape[2], i % 4)
        found.append(distributed.nystrom_attention_rows(*parts, places(q), **options))
    return found
