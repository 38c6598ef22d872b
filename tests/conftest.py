import importlib.util
import os

import pytest
import torch

torch.set_num_threads(1)  # the cases are small: threads would wait for one another
os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is defined
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is not there is not asked for again


def _patch_once():
    """Triton's interpreter patches triton.language at every call in a kernel; here once for all."""
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def patch_module_of(fn):
        if fn.__module__ not in patched:
            patched.add(fn.__module__)
            patch(fn)
        return interpreter._LangPatchScope()  # empty: nothing is ever restored

    interpreter._patch_lang = patch_module_of


if importlib.util.find_spec("triton") and os.environ["TRITON_INTERPRET"] == "1":
    _patch_once()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch):
    """torch.empty full of NaN, so that memory read before it is written shows."""
    new_empty = torch.Tensor.new_empty

    def filled(self, *args, **kwargs):
        out = new_empty(self, *args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
