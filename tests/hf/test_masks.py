import pytest
import torch

from nystromer.hf.masks import UnusableMaskError, key_mask

REAL = torch.tensor([[True, True, False, True], [False, False, False, False], [True] * 4])
ADDITIVE = torch.zeros(3, 1, 1, 4).masked_fill(~REAL[:, None, None], torch.finfo(torch.float32).min)
FORMS = {
    "bool": REAL,
    "int": REAL.long(),
    "bool 4-D": REAL[:, None, None],
    "bool for every query": REAL[:, None, None].expand(3, 1, 4, 4),
    "additive": ADDITIVE,
    "additive for every query": ADDITIVE.expand(3, 1, 4, 4),
    "minus infinity": torch.zeros(3, 1, 1, 4).masked_fill(~REAL[:, None, None], -torch.inf),
    "minus 10,000 in half precision": (-1e4 * (~REAL[:, None, None]).half()),
}


@pytest.mark.parametrize("form", FORMS)
def test_key_mask_reads_every_form_of_padding(form):
    mask = key_mask(FORMS[form], 3)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, REAL)


def test_key_mask_of_one_sequence_serves_the_whole_batch():
    assert torch.equal(key_mask(REAL[:1, None, None], 3), REAL[:1].expand(3, 4))


def test_key_mask_without_a_mask_is_none():
    assert key_mask(None, 3) is None


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(4, 4).tril().bool()[None, None], "differs between queries"),
        (torch.rand(1, 1, 4, 4), "carries a bias"),
        (torch.zeros(1, 2, 4, 4), "carries a bias"),
        (torch.ones(3, 2, 4, 4, dtype=torch.bool).tril(), "differs between queries"),
        (REAL.float(), r"a mask of torch.float32 and shape \[3, 4\]; pass \[B, N\]"),
        (REAL[:, None].long(), r"a mask of torch.int64 and shape \[3, 1, 4\]"),
        (REAL[:, None, None].long(), r"a mask of torch.int64 and shape \[3, 1, 1, 4\]"),
    ],
)
def test_key_mask_refuses(mask, message):
    with pytest.raises(UnusableMaskError, match=message):
        key_mask(mask, 3)
