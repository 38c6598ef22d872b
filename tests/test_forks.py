"""A child of os.fork after its parent has computed: what docs/when-it-will-not-work.md advises."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, torch
from nystromer import nystrom_attention

def run():
    q = torch.randn(1, 8, 4000, 64)
    nystrom_attention(q, q, q)

where = sys.argv[1]
torch.set_num_threads(2)
run()
if where == "before the fork":
    torch.set_num_threads(1)
child = os.fork()
if child == 0:
    if where == "in the child":
        torch.set_num_threads(1)
    run()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize("where", ["before the fork", "in the child"])
def test_a_forked_child_with_one_thread_computes(where, monkeypatch):
    """Without that it hangs, as plain torch does."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM, where]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "7"
