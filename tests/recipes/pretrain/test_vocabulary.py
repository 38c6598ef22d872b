import pytest
from transformers import AutoTokenizer

from nystromer.recipes.pretrain.vocabulary import train_tokenizer

TEXTS = ["The cat sat on the mat.", "A cat is not a mat!"] * 3


def test_trained_tokenizer_knows_the_words_and_pairs(tmp_path):
    train_tokenizer(lambda: TEXTS, 60).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= 60
    pair = tokenizer("The CAT", "mat.")
    words = ["[CLS]", "the", "cat", "[SEP]", "mat", ".", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == words
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer.tokenize("dog [SEP]") == ["[UNK]"] * 4
    assert tokenizer.decode(pair["input_ids"], skip_special_tokens=True) == "the cat mat."


def test_training_repeats_itself():
    first, again = (train_tokenizer(lambda: iter(TEXTS), 80).get_vocab() for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 60, "must hold words, got none"),
        (TEXTS, 8, r"`vocab_size` must be at least \d+, .* got 8"),
    ],
)
def test_what_cannot_be_trained_on(texts, size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(lambda: texts, size)
