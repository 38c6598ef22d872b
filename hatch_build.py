"""Hatchling's hook: builds the C++ library into the wheel, and goes on without where it cannot."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class NativeLibrary(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root, "src", "nystromer", "backends", "native")
        missing = runpy.run_path(str(folder / "build.py"))["build"]()
        if missing:
            self.app.display_warning(f"backend='native' is left out: {missing}")
            return
        # The library depends on the system, but neither on Python nor on torch.
        tags = list(platform_tags())
        portable = [tag for tag in tags if tag.startswith("manylinux")]  # this C library or newer
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{(portable or tags)[0]}"
        build_data["artifacts"].append("src/nystromer/backends/native/libnystromer.so")
