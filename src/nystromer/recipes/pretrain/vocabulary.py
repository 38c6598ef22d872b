"""Trains a tokenizer on a corpus's own words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from nystromer.recipes.inputs.tokenizers import framed

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = 1_000  # others are [UNK]


def train_tokenizer(read: Callable[[], Iterable[str]], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns BERT's lower-cased word pieces, `vocab_size` of them, the same every time.

    Args:
        read: Gives the texts; called twice.
        vocab_size: Tokens, special ones included.

    Raises:
        ValueError: If the texts hold no words, or vocab_size leaves no room for their letters.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts = Counter(chain.from_iterable(map(normalizer.normalize_str, read())))
    letters = sorted(x for x, _ in counts.most_common(LETTERS) if not x.isspace())
    if not letters:
        raise ValueError("The texts to learn words from must hold words, got none.")
    known = [*SPECIALS, *letters, *(f"##{x}" for x in letters)]
    if len(known) > vocab_size:
        raise ValueError(
            f"`vocab_size` must be at least {len(known)}, which the letters of the texts need, got "
            f"{vocab_size}."
        )
    learner = tokenizer_of(models.WordPiece(unk_token="[UNK]"))
    # Given as "special", letters get the same ids in every training; without, merges may differ.
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=known, show_progress=True)
    learner.train_from_iterator(read(), trainer)
    tokenizer = framed(tokenizer_of(models.WordPiece(learner.get_vocab(), unk_token="[UNK]")))
    tokenizer.unk_token = "[UNK]"
    return tokenizer


def tokenizer_of(model: models.Model) -> Tokenizer:
    """Returns BERT's tokenizer around a vocabulary."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
