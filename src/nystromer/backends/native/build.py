"""Compiles the C++ sources into the library beside them, with any C++17 compiler.

The build of the package runs this file, and `python -m nystromer.backends.native.build` does it by
hand, say after a compiler was installed. CXX and CXXFLAGS are heeded. It needs no header but the
compiler's own, neither Python's nor torch's.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "libnystromer.so"
# GCC and clang both know all of these; contraction makes fused multiply-adds of a * b + c.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wno-psabi")
KINDS: dict[str, tuple[str, ...]] = {"PHASES_PORTABLE": ()}  # of processors, and their flags
if platform.machine().lower() in ("x86_64", "amd64"):
    KINDS["PHASES_AVX2"] = ("-mavx2", "-mfma")
    KINDS["PHASES_AVX512"] = (
        *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
        "-mprefer-vector-width=512",
    )


def build() -> str | None:
    """Writes the library; if it cannot be built, removes it and returns why."""
    LIBRARY.unlink(missing_ok=True)
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler was found (set CXX, or install g++ or clang++)"
    with tempfile.TemporaryDirectory() as folder:
        try:
            compile_and_link(compiler, Path(folder))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or ""
            return f"{compiler[0]} failed: {error}\n{said[-2000:]}"
    return None


def find_compiler() -> list[str] | None:
    """The command of CXX, else the first of c++, g++ and clang++ that there is."""
    asked = os.environ.get("CXX")
    commands = [shlex.split(asked)] if asked else [["c++"], ["g++"], ["clang++"]]
    return next((x for x in commands if shutil.which(x[0])), None)


def compile_and_link(compiler: list[str], folder: Path) -> None:
    """phases.cpp once for every kind of processor, the other sources once."""
    flags = (*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")))
    source = HERE / "source"
    jobs: list[tuple[Path, Path, tuple[str, ...]]] = [
        (folder / f"{kind}.o", source / "phases.cpp", (*options, f"-DNYSTROMER_PHASES={kind}"))
        for kind, options in KINDS.items()
    ]
    jobs += [
        (folder / f"{path.stem}.o", path, ())
        for path in sorted(source.glob("*.cpp"))
        if path.stem != "phases"
    ]

    def run(*arguments: object) -> None:
        command = [*compiler, *flags, *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: run(*job[2], "-c", job[1], "-o", job[0]), jobs))
    link = ("-shared", "-pthread", *(job[0] for job in jobs), "-o", LIBRARY)
    try:  # nothing of the compiler's need then be on the machine that runs it
        run(*link, "-static-libstdc++", "-static-libgcc")
    except subprocess.CalledProcessError:
        run(*link)


if __name__ == "__main__":
    missing = build()
    sys.exit(f"The library was not built: {missing}" if missing else None)
