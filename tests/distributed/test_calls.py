"""What processes refuse, in what words, and what they exchange."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

import gloo
import nystromer
from nystromer.distributed import nystrom_attention, nystrom_attention_rows


def draw(*shape, dtype=torch.float32):
    return torch.randn(3, *shape, dtype=dtype).unbind()


def message_of(call, *args, **options):
    try:
        call(*args, **options)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def disagreements():
    """The message in this process where the second one differs in one thing."""
    last = dist.get_rank() == 1
    same = draw(2, 4, 30, 8)
    other = {
        "heads": {"qkv": draw(2, 2, 30, 8)},
        "width": {"qkv": draw(2, 4, 30, 16)},
        "batch": {"qkv": draw(1, 4, 30, 8)},
        "dtype": {"qkv": draw(2, 4, 30, 8, dtype=torch.float64)},
        "gradients": {"qkv": [x.clone().requires_grad_() for x in same]},
        "landmarks": {"num_landmarks": 8},
        "ridge": {"pinv_ridge": 0.1},
        "init": {"pinv_init": "sequence"},
        "taps": {"conv_weight": torch.randn(4, 3)},
        "backend": {"backend": "eager"},
        "scale": {"scale": 0.3},
        "refused": {"mask": torch.ones(2, 29, dtype=torch.bool)},
        "not tensors": {"qkv": (1, 2, 3)},
    }
    found = {}
    for name, changed in other.items():
        options = {"num_landmarks": 16, "backend": "blocked", **(changed if last else {})}
        qkv = options.pop("qkv", same)
        found[name] = message_of(nystrom_attention, *qkv, **options)
    bad_rows = [0] if last else [0, 1]
    found["rows"] = message_of(nystrom_attention_rows, *same[:2], bad_rows)
    found["row"] = message_of(nystrom_attention_rows, *same[:2], [60])
    found["fine"] = message_of(nystrom_attention, *same)
    return found


def test_parts_that_disagree_are_named_in_every_process(tmp_path):
    first, second = gloo.run(__file__, "disagreements", 2, tmp_path)
    one_cause = ("refused", "not tensors")
    assert all(first[name] == second[name] for name in first if name not in one_cause)
    start = "ValueError: All parts of a sequence must have the same "
    for name, end in {
        "heads": "number of heads H, got 4 in process 0 and 2 in process 1.",
        "width": "head width D, got 8 in process 0 and 16 in process 1.",
        "batch": "batch size B, got 2 in process 0 and 1 in process 1.",
        "dtype": "dtype, got torch.float32 in process 0 and torch.float64 in process 1.",
        "landmarks": "`num_landmarks`, got 16 in process 0 and 8 in process 1.",
        "ridge": "`pinv_ridge`, got None in process 0 and 0.1 in process 1.",
        "init": "`pinv_init`, got 'matrix' in process 0 and 'sequence' in process 1.",
        "taps": "number of taps in `conv_weight` (0: none), got 0 in process 0 and 3 in process 1.",
        "backend": "backend, got 'blocked' in process 0 and 'eager' in process 1.",
        "rows": "number of `rows`, got 2 in process 0 and 1 in process 1.",
    }.items():
        assert first[name] == start + end
    assert "need for gradients" in first["gradients"]
    assert "`scale`" in first["scale"]
    assert "`rows` must lie in 0 ... 59" in first["row"]
    assert (
        first["refused"] == "ValueError: Process 1 refused its part of the sequence; its own "
        "message says why."
    )
    assert "`mask` must have shape [B, N] = [2, 30], got [2, 29]" in second["refused"]
    assert "`query` must be a tensor, got int" in second["not tensors"]
    assert first["fine"] is second["fine"] is None


def dying():
    """One process ends in the middle of a call; the others' message."""
    q, k, v = draw(1, 2, 30, 8)
    nystrom_attention(q, k, v)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    return message_of(nystrom_attention, q, k, v), time.monotonic() - start


def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path):
    processes = gloo.start(__file__, "dying", 3, tmp_path, time_out=20)
    for process in processes:
        process.communicate(timeout=120)
    for rank in (0, 2):
        message, seconds = torch.load(tmp_path / f"dying{rank}.pt")
        assert f"Process {rank} of 3 did not reach the others" in message
        assert seconds < 25


def bytes_of(n, backward=True, **options):
    """Bytes that this process hands to collectives in one call."""
    total = 0

    def counting(collective):
        def run(*tensors, **kwargs):
            nonlocal total
            x = tensors[1] if collective is not reduce else tensors[0]
            total += x.numel() * x.element_size()
            return collective(*tensors, **kwargs)

        return run

    reduce, gather, exchange = dist.all_reduce, dist.all_gather, dist.all_to_all_single
    dist.all_reduce, dist.all_gather = counting(reduce), counting(gather)
    dist.all_to_all_single = counting(exchange)
    try:
        q, k, v = (x.requires_grad_(backward) for x in draw(1, 2, n, 8))
        output = nystrom_attention(q, k, v, num_landmarks=16, **options)
        if backward:
            output.sum().backward()
    finally:
        dist.all_reduce, dist.all_gather, dist.all_to_all_single = reduce, gather, exchange
    return total


def exchanged_bytes():
    taps = torch.randn(2, 33)
    lengths = (64, 2048, 8192)
    return [[bytes_of(n, b, conv_weight=taps) for n in lengths] for b in (False, True)]


def test_bytes_do_not_grow_with_the_sequence(tmp_path):
    heads, m, dim, edge = 2, 16, 8, 16
    told = 8 * (1 + 16) + 8 * 2  # sizes and settings, then the lengths of one sequence
    forward = 4 * heads * (m * (2 * dim + dim + 2) + edge * dim)
    backward = 4 * heads * (m * (2 * dim + dim) + edge * dim)
    for bytes_forward, bytes_both in gloo.run(__file__, "exchanged_bytes", 2, tmp_path):
        assert bytes_forward == [told + forward] * 3
        assert bytes_both == [told + forward + backward] * 3


def ways_to_call():
    """Differences to the plain operation in ways that a call can be made."""
    rank = dist.get_rank()
    torch.manual_seed(0)  # the same whole in every process
    q, k, v = draw(1, 4, 90, 8)
    whole = nystromer.nystrom_attention(q, k, v, num_landmarks=16)
    first, here = (0, 40) if rank == 0 else (40, 50)
    parts = [x.narrow(2, first, here) for x in (q, k, v)]
    expected = whole.narrow(2, first, here)
    found = {}

    def compare(name, output, other=expected):
        found[name] = float((output.float() - other.float()).abs().max())

    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "sequence"))
    options = {"num_landmarks": 16}
    compare("mesh", nystrom_attention(*parts, **options, mesh=mesh["sequence"]))
    compare("no batch", nystrom_attention(*(x[0] for x in parts), **options)[None])
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in parts]
    compare("strides", nystrom_attention(*strided, **options))
    compiled = torch.compile(lambda *x: nystrom_attention(*x, **options) * 2, backend="eager")
    compare("compiled", compiled(*parts) / 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = nystrom_attention(*parts, **options)
    found["autocast dtype"] = str(autocast.dtype)
    compare("autocast", autocast)
    keys = [x[:, ::2] for x in parts[1:]]
    grouped = nystromer.nystrom_attention(q, k[:, ::2], v[:, ::2], enable_gqa=True, **options)
    output = nystrom_attention(parts[0], *keys, enable_gqa=True, **options)
    compare("grouped heads", output, grouped.narrow(2, first, here))
    alone = dist.new_group([rank], use_local_synchronization=True)
    own = nystromer.nystrom_attention(*parts, **options)
    found["a group of one"] = torch.equal(nystrom_attention(*parts, group=alone, **options), own)
    found["two groups"] = message_of(nystrom_attention, *parts, group=alone, mesh=mesh)
    found["two dimensions"] = message_of(nystrom_attention, *parts, mesh=mesh)

    leaves = [x.clone().requires_grad_() for x in parts]
    grads = []
    for again in (False, True):
        call = lambda *x: nystrom_attention(*x, **options)  # noqa: E731
        output = checkpoint(call, *leaves, use_reentrant=False) if again else call(*leaves)
        grads.append(torch.autograd.grad(output.square().sum(), leaves))
    found["checkpoint"] = all(map(torch.equal, *grads))
    hidden = torch.zeros(1, here, dtype=torch.bool) if rank == 0 else None
    output = nystrom_attention(*parts, mask=hidden, **options)
    own = nystromer.nystrom_attention(*(x[:, :, 40:] for x in (q, k, v)), **options)
    other = torch.zeros_like(output) if rank == 0 else own
    compare("one part is padding", output, other)
    return found


def test_ways_to_call(tmp_path):
    for found in gloo.run(__file__, "ways_to_call", 2, tmp_path):
        assert found.pop("autocast dtype") == "torch.bfloat16"
        assert found.pop("autocast") < 3e-2
        assert found.pop("a group of one") is found.pop("checkpoint") is True
        assert "leave one of them out" in found.pop("two groups")
        assert "`mesh` must have one dimension" in found.pop("two dimensions")
        assert all(difference < 1e-5 for difference in found.values()), found


def test_without_a_process_group_it_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"start with torchrun and call torch.distributed.init"):
        nystrom_attention(*draw(1, 2, 30, 8))
