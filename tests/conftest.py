import pytest
import torch

torch.set_num_threads(1)  # the cases are small: threads would wait for one another


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
