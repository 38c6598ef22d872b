"""Tokenizers: bytes and DNA letters, which need no training, or one by name."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from nystromer.recipes.files.errors import reason

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer `bytes` or `dna`, or that of a folder or a Hub name.

    Raises:
        ValueError: If there is none.
    """
    if name in ("bytes", "dna"):
        return byte_tokenizer() if name == "bytes" else dna_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever foreign files make transformers raise
        raise ValueError(
            f"No tokenizer can be loaded from {name} ({reason(error)}); name bytes, dna, one on "
            "the Hub, or a folder."
        ) from error


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer for which every byte of UTF-8 is its own id, 0 ... 255; [PAD], [CLS],
    [SEP], [MASK] follow."""
    vocabulary = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(with_special(vocabulary), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return framed(tokenizer)


def dna_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer for A, C, G, T and N in either case; other letters are N, spaces and
    line ends are left out."""
    vocabulary = {letter: i for i, letter in enumerate("ACGTN")}
    tokenizer = Tokenizer(models.BPE(with_special(vocabulary), merges=[]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\s"), ""),
            normalizers.Replace("a", "A"),
            normalizers.Replace("c", "C"),
            normalizers.Replace("g", "G"),
            normalizers.Replace("t", "T"),
            normalizers.Replace(Regex("[^ACGT]"), "N"),
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    return framed(tokenizer)


def with_special(vocabulary: dict[str, int]) -> dict[str, int]:
    """Returns the vocabulary with the special tokens after the others."""
    count = len(vocabulary)
    return vocabulary | {token: count + i for i, token in enumerate(SPECIAL.values())}


def framed(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that gives [CLS] text [SEP], or [CLS] text [SEP] second text [SEP]."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        split_special_tokens=True,  # a text that says "[SEP]" means those five letters
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **SPECIAL,
    )


def check_alphabet(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Checks that texts suit a tokenizer for DNA.

    Raises:
        ValueError: If the tokenizer is for DNA, and most of the texts' letters are not.
    """
    if len(tokenizer) != len("ACGTN") + len(SPECIAL):
        return
    letters = "".join(texts[:100]).upper()
    strange = sum(letter not in "ACGTN \r\n" for letter in letters)
    if 2 * strange > len(letters):
        raise ValueError(
            f"`--tokenizer dna` is for A, C, G, T and N, got {letters[:20]!r}; write --tokenizer "
            "bytes for text."
        )
