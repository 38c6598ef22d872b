"""What `native` promises beyond the numbers: threads, processes, memory, one node for compilers."""

import subprocess
import sys
import threading
import warnings

import pytest
import torch

from cases import BACKENDS, Case, assert_close, make_inputs, relative_error
from memory import number_printed
from nystromer import nystrom_attention
from nystromer.backends.native import library
from nystromer.backends.native.operation import native_forward

pytestmark = pytest.mark.skipif("native" not in BACKENDS, reason="its library was not built")

# enough work for several threads, and several chunks of a sequence
LARGE = Case(n=1500, m=40, kernel=9, batch=2, heads=3, dim=20, value_dim=24, masks="holes")


def results(tensors, options, backend="native", grad=None):
    """The output and all gradients."""
    inputs = [x.detach().requires_grad_() for x in tensors]
    taps = options["conv_weight"]
    if taps is not None:
        taps = taps.detach().requires_grad_()
    output = nystrom_attention(*inputs, **{**options, "conv_weight": taps}, backend=backend)
    grad = torch.ones_like(output) if grad is None else grad
    leaves = inputs if taps is None else [*inputs, taps]
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.fixture
def threads():
    """Sets the number of torch's threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_the_same_bits_for_any_number_of_threads(threads, dtype):
    tensors, options = make_inputs(LARGE, dtype)
    threads(1)
    expected = results(tensors, options)
    for number in (2, 3, 8):
        threads(number)
        for _ in range(3):
            found = results(tensors, options)
            assert all(map(torch.equal, found, expected))


def test_results_are_the_same_bits_whatever_padding_and_neighbours():
    """Chunks are cut by the number of real tokens alone."""
    tensors, options = make_inputs(Case(n=1100, m=40, kernel=9, batch=1), torch.float32)
    expected = results(tensors, options)
    mask = torch.rand(2, 2300) < 0.7
    mask[0] = False
    mask[0, torch.randperm(2300)[:1100]] = True
    wide = [torch.randn(2, 2, 2300, 16) for _ in range(3)]
    for x, tokens in zip(wide, tensors, strict=True):
        x[0, :, mask[0]] = tokens[0]
    options["conv_weight"] = None
    expected = results(tensors, options)
    found = results(wide, {**options, "mask": mask})
    for ours, alone in zip(found, expected, strict=True):
        assert torch.equal(ours[0, :, mask[0]], alone[0])


@pytest.mark.parametrize("seed", [0, 2])
def test_long_sums_lose_no_more_digits_than_eager_does(seed):
    """M = 256 and N = 65,536, one head."""
    case = Case(n=65536, m=256, batch=1, heads=1, dim=64, value_dim=64, kernel=33)
    tensors, options = make_inputs(case, torch.float32)
    g = torch.Generator().manual_seed(seed)
    *tensors, grad = (torch.randn(tensors[0].shape, generator=g) for _ in range(4))
    doubled = {**options, "conv_weight": options["conv_weight"].double()}
    exact = results([x.double() for x in tensors], doubled, "eager", grad.double())
    ours, eager = (results(tensors, options, b, grad) for b in ("native", "eager"))
    for found, theirs, right in zip(ours, eager, exact, strict=True):
        assert relative_error(found, right) < max(1e-6, 1.5 * relative_error(theirs, right))


def test_several_python_threads_call_at_once(threads):
    tensors, options = make_inputs(LARGE, torch.float32)
    expected, found = results(tensors, options), {}

    def call(i):
        torch.set_num_threads(2)
        found[i] = [results(tensors, options) for _ in range(5)]

    started = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert len(found) == 4
    assert all(all(map(torch.equal, one, expected)) for many in found.values() for one in many)


FORK = """
import os, signal, torch
from nystromer import nystrom_attention

torch.set_num_threads(2)
tensors = [torch.randn(4, 8, 1500, 64, requires_grad=True) for _ in range(3)]

def call():
    output = nystrom_attention(*tensors, backend="native")
    return [output, *torch.autograd.grad(output, tensors, output.detach())]

expected = [call() for _ in range(3)][0]
child = os.fork()
if child == 0:
    signal.alarm(60)
    found = [y for _ in range(3) for y in call()]
    torch.set_num_threads(1)  # torch's own loops would hang
    expected = expected * 3
    os._exit(0 if all(map(torch.equal, found, expected)) else 1)
print(os.waitpid(child, 0)[1])
"""

WORKERS = """
import torch
from torch.utils.data import DataLoader, Dataset
from nystromer import nystrom_attention

class Outputs(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        torch.manual_seed(i)
        q = torch.randn(1, 4, 1500, 32)
        return nystrom_attention(q, q, q, backend="native")

if __name__ == "__main__":
    torch.set_num_threads(2)
    here = torch.stack([Outputs()[i] for i in range(6)])
    there = torch.cat(list(DataLoader(Outputs(), num_workers=2, timeout=60)))
    print(int(not torch.equal(here, there)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
@pytest.mark.parametrize("program", [FORK, WORKERS], ids=["fork", "DataLoader"])
def test_a_forked_child_calls_after_its_parent_did(program):
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "0", done.stderr


MEASURE = """
from nystromer import nystrom_attention

backward = sys.argv[1] == "backward"

def run(n):
    q, k, v = (torch.randn(1, 8, n, 64).requires_grad_(backward) for _ in range(3))
    taps = torch.randn(8, 33).requires_grad_(backward)
    grad = torch.ones_like(q) if backward else None
    before = peak()
    output = nystrom_attention(q, k, v, num_landmarks=256, conv_weight=taps, backend="native")
    if backward:
        output.backward(grad)
    return (peak() - before) / (q.numel() * 4)

run(1024)
print(run(65536))
"""


@pytest.mark.parametrize(("direction", "limit"), [("forward", 1.6), ("backward", 4.7)])
def test_native_memory_grows_by_its_results_and_little_more(direction, limit):
    """N = 65,536, M = 256, 8 heads of 64: one output; with gradients, four."""
    assert number_printed(MEASURE, direction) <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masks", [None, "holes"])
def test_native_operation_passes_opcheck(masks, dtype):
    tensors, options = make_inputs(Case(n=40, m=8, kernel=5, masks=masks), dtype)
    q, k, v = (x.requires_grad_() for x in tensors)
    taps, mask = options["conv_weight"].requires_grad_(), options["mask"]
    arguments = (q, k, v, mask, mask, taps, None, None, 8, 0.25, 6, "matrix", None)
    torch.library.opcheck(native_forward, arguments)


def test_native_keeps_the_memory_order_of_its_inputs():
    q = torch.randn(2, 50, 4, 8, requires_grad=True)
    heads = q.transpose(1, 2)
    output = nystrom_attention(heads, heads, heads, num_landmarks=8, backend="native")
    assert output.transpose(1, 2).is_contiguous()


def test_tokens_far_apart_in_memory_are_found():
    """Offsets beyond 2^31 elements, in memory that is reserved but mostly not touched."""
    room = torch.empty(3 << 30, dtype=torch.bfloat16)
    far = room.as_strided((1, 2, 60, 8), (0, 1 << 31, 1 << 24, 1))
    far.normal_()
    near = far.contiguous()
    options = {"num_landmarks": 8, "backend": "native"}
    found = nystrom_attention(far, far, far, **options)
    assert torch.equal(found, nystrom_attention(near, near, near, **options))


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 64, 65, 130])
@pytest.mark.parametrize("m", [1, 5, 65, 129])
def test_sizes_beside_those_of_registers_and_panels(m, dim):
    case = Case(n=2 * m + 3, m=m, batch=1, heads=1, dim=dim, value_dim=max(1, dim - 3), kernel=3)
    tensors, options = make_inputs(case, torch.float32)
    grad = torch.randn_like(tensors[2])
    doubled = {**options, "conv_weight": options["conv_weight"].double()}
    exact = results([x.double() for x in tensors], doubled, "eager", grad.double())
    for found, right in zip(results(tensors, options, grad=grad), exact, strict=True):
        assert_close(found, right, 3e-5)


def test_native_names_what_is_missing(monkeypatch, tmp_path):
    q = torch.randn(1, 1, 9, 4)
    monkeypatch.setattr(library, "MISSING", library.load(tmp_path / library.NAME)[1])
    with pytest.raises(NotImplementedError, match=r"'native' needs its library, .* not built .*'b"):
        nystrom_attention(q, q, q, backend="native")
    assert nystrom_attention(q, q, q).shape == q.shape


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_a_broken_library_is_one_warning(content, tmp_path):
    path = tmp_path / library.NAME
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"does not load .*; 'blocked' takes its place\. Install"):
        assert library.load(path)[0] is None


def test_a_library_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(library, "Call", library.Mask)
    with pytest.warns(UserWarning, match="is of another version than the Python around it"):
        assert library.load(library.Path(library.LIBRARY._name))[0] is None


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.randn(1, 1, 9, 4, dtype=torch.float64), r"needs float32 or bfloat16, got .*float64"),
        (torch.randn(1, 1, 9, 4).half(), r"needs float32 or bfloat16, got .*float16; use backend="),
        (torch.randn(1, 1, 9, 4, device="meta"), "needs CPU tensors, got meta; use backend="),
    ],
)
def test_native_refuses_other_dtypes_and_devices(tensor, message):
    with pytest.raises(NotImplementedError, match=message):
        nystrom_attention(tensor, tensor, tensor, num_landmarks=4, backend="native")
    with warnings.catch_warnings():
        assert nystrom_attention(tensor, tensor, tensor, num_landmarks=4).shape == tensor.shape


def test_native_refuses_a_second_derivative():
    q = torch.randn(1, 2, 50, 8, requires_grad=True)
    output = nystrom_attention(q, q, q, num_landmarks=8, backend="native")
    (grad,) = torch.autograd.grad(output.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*backend='eager'"):
        grad.sum().backward()
