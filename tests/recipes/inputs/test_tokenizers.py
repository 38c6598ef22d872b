import pytest
from transformers import AutoTokenizer

from nystromer.recipes.inputs.tokenizers import load_tokenizer

TEXT = "Äh, [SEP]\r\n\t tab \U0001f600"


def test_bytes_are_the_bytes():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer(TEXT, add_special_tokens=False).input_ids == list(TEXT.encode())
    assert tokenizer.decode(list(TEXT.encode())) == TEXT
    assert len(tokenizer) == 260


def test_a_pair_is_framed():
    found = load_tokenizer("bytes")("a", "bc")
    assert found.input_ids == [257, 97, 258, 98, 99, 258]
    assert found.token_type_ids == [0, 0, 0, 1, 1, 1]


def test_dna_reads_either_case_and_takes_other_letters_for_n():
    found = load_tokenizer("dna")("acgtn RX\nACGT", add_special_tokens=False)
    assert found.input_ids == [0, 1, 2, 3, 4, 4, 4, 0, 1, 2, 3]


@pytest.mark.parametrize("name", ["bytes", "dna"])
def test_a_tokenizer_comes_back_from_its_folder(tmp_path, name):
    tokenizer = load_tokenizer(name)
    tokenizer.save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert again(TEXT, "GATTACA").input_ids == tokenizer(TEXT, "GATTACA").input_ids
        assert again.pad_token_id == tokenizer.pad_token_id


def test_load_tokenizer_refuses_what_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"No tokenizer can be loaded from .*; name bytes, dna"):
        load_tokenizer(str(tmp_path))
