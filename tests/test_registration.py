"""Operations of a process whose modules are imported more than once."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys, warnings
warnings.simplefilter("error")
import torch, nystromer, nystromer.modules, nystromer.compat.lucidrains
from nystromer import clustered_attention, nystrom_attention
{with_triton}

def results(function, **options):
    torch.manual_seed(0)
    q = torch.randn(1, 2, 50, 8, requires_grad=True)
    output = function(q, q, q, **options)
    return output, torch.autograd.grad(output.sin().sum(), q)[0]

few = dict(num_query_clusters=4, num_key_clusters=4, num_exact_keys=4)
kept = [(nystrom_attention, dict(num_landmarks=8)), (clustered_attention, few)]
right = [results(function, **options) for function, options in kept]

def check():
    new = [(getattr(nystromer, function.__name__), options) for function, options in kept]
    for functions in (kept, new):
        for (function, options), expected in zip(functions, right):
            for a, b in zip(results(function, **options), expected):
                assert torch.equal(a, b), function

names = [name for name in sys.modules if name.startswith("nystromer")]
importlib.reload(nystromer)
check()
for order in (names, sorted(names), sorted(names, reverse=True)):
    for name in order:
        importlib.reload(sys.modules[name])
    check()
for name in names:
    del sys.modules[name]
import nystromer
check()
compiled = torch.compile(nystromer.nystrom_attention, fullgraph=True, backend="aot_eager")
assert torch.equal(results(compiled, num_landmarks=8)[0], right[0][0])
{and_then}
print("done")
"""

CHANGED = """
from nystromer.backends.blocked import operation
options = {"num_landmarks": 8, "backend": "blocked"}
before = results(kept[0][0], **options)[0]
source = open(operation.__file__).read()
name = "nystromer.backends.blocked.operation"
exec(compile(source.replace("return output, *small", "return output + 1, *small", 1), name, "exec"),
     operation.__dict__)  # what a reload of an edited file does
assert torch.equal(results(kept[0][0], **options)[0], before + 1)
"""


def run(**parts):
    program = PROGRAM.format(**{"with_triton": "", "and_then": "", **parts})
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("and_then", ["", CHANGED], ids=["same", "changed"])
def test_modules_can_be_reloaded_and_imported_anew(and_then):
    """In every order; functions from before, and an operation whose file has changed."""
    done = run(and_then=and_then)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


def test_the_triton_operations_can_be_reloaded(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = run(with_triton="import nystromer.backends.triton.operation")
    assert done.stdout.strip() == "done", done.stderr[-2000:]
