"""Shows whether the Triton kernels compile and fit into a GPU, without one.

    python -m benchmarks attention.compile_kernels [--case 64,64,33,float16 ...]

Takes about five minutes on one core.

No GPU is needed, only the package triton, which compiles for an H100 or H200 (sm_90) anywhere. A
case is D, M, K and a dtype: the backend is run on CPU tensors, with every launch replaced by a
compilation of just what a GPU would have compiled. Writes results/kernels.csv, unless --case. The
exit code is 1 if a kernel does not compile, spills more than 1,280 bytes a thread, or needs more
shared memory than the smallest GPUs from sm_80 on have.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read where a kernel is defined

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks import common

TARGET = GPUTarget("cuda", 90, 32)
SHARED_LIMIT = 99 * 1024  # bytes of a block: of sm_86, sm_89 and sm_120, where sm_90 has 227
STACK_LIMIT = 1280  # bytes of a thread
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
}
CASES = [
    f"{case},{dtype}"
    for dtype in ("float16", "float32")
    for case in ("16,16,3", "64,64,33", "64,256,0", "96,32,65", "128,64,33", "256,64,33")
] + ["256,256,65,bfloat16", "256,256,65,float32"]


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes."""

    case: str
    kernel: str
    registers: int
    stack: int  # bytes a thread: spilled registers
    shared: int  # bytes a block
    tensor_products: int  # tensor core instructions

    @property
    def fits(self) -> bool:
        return self.shared <= SHARED_LIMIT and self.stack <= STACK_LIMIT


def compile_launch(kernel: JITFunction, named: dict[str, object], options: dict[str, int]):
    """Compiles what a launch with these arguments would compile."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, x = parameter.name, named[parameter.name]
        special = isinstance(x, torch.Tensor) or not parameter.do_not_specialize
        if parameter.is_constexpr or x is None or (special and isinstance(x, int) and x == 1):
            signature[name], constants[name] = "constexpr", x
            continue
        signature[name] = POINTERS[x.dtype] if isinstance(x, torch.Tensor) else "i32"
        if isinstance(x, torch.Tensor) or (special and x % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGET, options=options)


def describe(case: str, name: str, compiled) -> Compiled:
    """Reads registers and spilled bytes by NVIDIA's cuobjdump, the others from the kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        done = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    used = dict(re.findall(r"(REG|STACK):(\d+)", done.stdout))
    products = len(re.findall(r"wgmma\.mma_async|mma\.sync", compiled.asm["ptx"]))
    shared = compiled.metadata.shared
    return Compiled(case, name, int(used["REG"]), int(used["STACK"]), shared, products)


def kernels_of(case: str) -> list[Compiled]:
    """Compiles every kernel of one forward and backward."""
    dim, m, kernel, dtype = case.split(",")
    found: list[Compiled] = []

    def run(self, *args, grid, warmup, **named):
        named.update(zip(self.arg_names, args, strict=False))
        options = {k: named.pop(k) for k in ("num_warps", "num_stages") if k in named}
        compiled = compile_launch(self, named, options)
        found.append(describe(case, self.fn.__name__, compiled))

    JITFunction.run = run
    forward_and_backward(int(dim), int(m), int(kernel), getattr(torch, dtype))
    return found


def forward_and_backward(dim: int, m: int, kernel: int, dtype: torch.dtype) -> None:
    from nystromer.backends.triton.operation import triton_backward, triton_forward

    q, k, v = torch.zeros(3, 2, 2, 4096, dim, dtype=dtype)
    taps = torch.zeros(2, kernel, dtype=dtype) if kernel else None
    mask = torch.ones(2, 4096, dtype=torch.bool) if dim == 64 else None
    settings = (0.1, 6, "matrix", None)
    output, *small = triton_forward(q, k, v, mask, mask, taps, None, None, m, *settings)
    triton_backward(output, q, k, v, mask, mask, taps, *small, False, *settings)


def main() -> int:
    parser = common.command_line(__doc__)
    parser.add_argument("--case", action="append", metavar="D,M,K,DTYPE", help="may be repeated")
    cases = parser.parse_args().case
    found = []
    for case in cases or CASES:
        for kernel in kernels_of(case):
            found.append(kernel)
            print(*astuple(kernel), "" if kernel.fits else "DOES NOT FIT", flush=True)
    if cases is None:
        common.write([asdict(kernel) for kernel in found], common.RESULTS / "kernels.csv")
    return 0 if all(kernel.fits for kernel in found) else 1
