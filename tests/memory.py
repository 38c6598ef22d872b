"""What a program measures of its own memory, in a process of its own."""

import subprocess
import sys

PEAK = """
import resource, sys, torch

torch.set_num_threads(1)

def peak():  # bytes, since this program began: ru_maxrss may be that of the process before it
    try:
        with open("/proc/self/status") as file:
            return next(int(x.split()[1]) for x in file if x.startswith("VmHWM")) * 1024
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
"""


def number_printed(program, *arguments):
    """What the program prints last, a number; it knows peak() and its words as sys.argv[1:]."""
    command = [sys.executable, "-c", PEAK + program, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
