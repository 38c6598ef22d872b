"""Cuts documents into rows of sentences, and draws masked pairs of segments from rows.

N is the sequence length, specials included: [CLS] A [SEP] B [SEP].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

SPECIALS = 3
SENTENCE = re.compile(r"(?<=[.!?]\s)(?=\S)|(?<=\n)(?=\S)|(?<=[。！？])")  # nothing is lost
Row = dict[str, list[int]]
Example = dict[str, Tensor]


def rows_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Row]:
    """Gives rows of whole sentences of one document, as many as fit into N - 3 tokens.

    A sentence beyond half a row (a genome, say) is cut into quarters of a row. Rows of one sentence
    are left out: they have no order.

    Args:
        texts: Documents.
        tokenizer: The model's.
        length: N, the tokens of a row with special ones.

    Yields:
        input_ids without specials, and starts, where in them its sentences start.
    """
    space = length - SPECIALS
    sentences = [[x for x in SENTENCE.split(text) if x.strip()] for text in texts]
    flat = [x for document in sentences for x in document]
    if not flat:
        return
    ids = iter(
        tokenizer(flat, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
    )
    for document in sentences:
        pieces = (p for x in islice(ids, len(document)) for p in _pieces(x, space))
        yield from _packed(pieces, space)


def _pieces(sentence: list[int], space: int) -> Iterator[list[int]]:
    size = len(sentence) if len(sentence) <= space // 2 else space // 4
    for start in range(0, len(sentence), max(size, 1)):
        yield sentence[start : start + size]


def _packed(pieces: Iterator[list[int]], space: int) -> Iterator[Row]:
    ids: list[int] = []
    starts: list[int] = []
    for piece in pieces:
        if len(ids) + len(piece) > space:
            if len(starts) > 1:
                yield {"input_ids": ids, "starts": starts}
            ids, starts = [], []
        starts.append(len(ids))
        ids.extend(piece)
    if len(starts) > 1:
        yield {"input_ids": ids, "starts": starts}


class Draw:
    """Makes a row a pair of segments, swapped half of the time, with 15 % of its words asked.

    Of the words asked, 80 % are hidden by [MASK], 10 % by any word, and 10 % stay. What is drawn
    depends on the seed and the key alone: not on batches, workers or processes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> None:
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.masks = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        self.generator = self.masks.generator = torch.Generator()
        self.seed = seed

    def __call__(self, row: Mapping[str, Any], key: int) -> Example:
        """Draws a pair from a row.

        Args:
            row: One of `rows_of`.
            key: The number of the draw, such as epoch * rows + index.

        Returns:
            What NystromformerForPreTraining takes, each [N]; sentence_order_label is 1 if swapped.
        """
        state = np.random.SeedSequence((self.seed, key)).generate_state(1, np.uint64)
        self.generator.manual_seed(int(state[0]))
        choice, swapped = torch.randint(2**31, (2,), generator=self.generator).tolist()
        cut = int(row["starts"][1 + choice % (len(row["starts"]) - 1)])
        first, second = row["input_ids"][:cut], row["input_ids"][cut:]
        if swapped % 2:
            first, second = second, first
        parts = ([self.cls], first, [self.sep], second, [self.sep])
        ids = torch.from_numpy(np.concatenate([np.asarray(x, np.int64) for x in parts]))
        types = torch.zeros_like(ids)
        types[len(first) + 2 :] = 1
        special = torch.zeros_like(ids)
        special[[0, len(first) + 1, -1]] = 1
        ids, labels = self.masks.torch_mask_tokens(ids[None], special_tokens_mask=special[None])
        return {
            "input_ids": ids[0],
            "token_type_ids": types,
            "labels": labels[0],
            "sentence_order_label": torch.tensor(swapped % 2),
        }


class Pad:
    """Makes examples of any lengths a batch as long as the longest."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.values = {"input_ids": tokenizer.pad_token_id, "token_type_ids": 0, "labels": -100}

    def __call__(self, examples: Sequence[Example]) -> Example:
        """Returns [B, N] each, with attention_mask, and sentence_order_label [B]."""
        batch = {
            name: pad_sequence([x[name] for x in examples], batch_first=True, padding_value=value)
            for name, value in self.values.items()
        }
        lengths = torch.tensor([len(x["input_ids"]) for x in examples])
        batch["attention_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        batch["sentence_order_label"] = torch.stack([x["sentence_order_label"] for x in examples])
        return batch
