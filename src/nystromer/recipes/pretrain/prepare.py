"""Makes rows of token ids of a corpus: of files once, on disk; of a dataset as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from nystromer.recipes.files.caches import kept
from nystromer.recipes.files.fingerprints import of_rows
from nystromer.recipes.inputs.lines import BadLines
from nystromer.recipes.inputs.rows import text
from nystromer.recipes.inputs.tokenizers import load_tokenizer
from nystromer.recipes.pretrain.corpus import Corpus, held_out
from nystromer.recipes.pretrain.pairs import Draw, Row, rows_of
from nystromer.recipes.pretrain.vocabulary import train_tokenizer

DOCUMENTS = 200  # tokenised at a time
TRAINED_ON = 1_000_000  # documents, for a tokenizer
SHUFFLED = 10_000  # documents of a stream
FORMAT = 2  # counts up when the same corpus makes other rows
TRAIN, HELD_OUT, COUNTS = "train.arrow", "held_out.arrow", "counts.json"


def cached(kind: str, *identity: Any) -> Path:
    """Returns the folder for what depends on `identity` alone, beside the caches of `datasets`."""
    key = of_rows([FORMAT, *identity])[:16]
    return Path(datasets.config.HF_DATASETS_CACHE) / "nystromer" / f"{kind}-{key}"


def corpus_tokenizer(corpus: Corpus, name: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of the name, or, for "train", one trained on the corpus (once: it is
    kept in the cache).

    Raises:
        ValueError: As `load_tokenizer` and `train_tokenizer`, or if it lacks a special token.
    """
    if name == "train":
        folder = cached("tokenizer", corpus.identity(), vocab_size)

        def make(partial: Path) -> None:
            trained = train_tokenizer(lambda: islice(corpus.documents(), TRAINED_ON), vocab_size)
            trained.save_pretrained(partial)

        name = str(kept(folder, make))
    tokenizer = load_tokenizer(name)
    for token in ("cls_token", "sep_token", "mask_token", "pad_token"):
        if getattr(tokenizer, token) is None:
            raise ValueError(
                f"`--tokenizer` must have a {token}, which pairs need; {name} has none."
            )
    return tokenizer


def prepared(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int, *, share: float, at_most: int
) -> Path:
    """Returns the folder with rows of the corpus, written unless it is in the cache.

    Args:
        corpus: Files become train.arrow and held_out.arrow; of a dataset, which is streamed, only
            the held-out documents that come first are written.
        tokenizer: Of the model.
        length: N.
        share: Of the documents to hold out.
        at_most: Rows to keep of those held out.

    Raises:
        ValueError: If the documents cannot be read, are fewer than one sequence, or none is held
            out.
    """
    known = [tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.name_or_path]

    def make(partial: Path) -> None:
        counts = write_rows(corpus, tokenizer, length, partial, share=share, at_most=at_most)
        check_counts(counts, length, share, streamed=bool(corpus.dataset))
        (partial / COUNTS).write_text(json.dumps(counts), encoding="utf-8")

    return kept(cached("rows", corpus.identity(), known, length, share, at_most), make)


def write_rows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    folder: Path,
    *,
    share: float,
    at_most: int,
) -> dict[str, int]:
    """Reads every document once, a few hundred at a time, and says how many of what there was."""
    bad_lines, rows = BadLines(corpus.skip_bad_lines), {TRAIN: 0, HELD_OUT: 0}
    documents = tokens = 0
    ids = pa.uint16() if len(tokenizer) <= 2**16 else pa.int32()
    schema = pa.schema({"input_ids": pa.list_(ids), "starts": pa.list_(pa.int32())})
    with ExitStack() as stack:
        files = {x: stack.enter_context(pa.ipc.new_stream(folder / x, schema)) for x in rows}
        texts = tqdm(corpus.documents(bad_lines), "Reading", unit=" documents", unit_scale=True)
        for some in batches(iter(texts)):
            kept = [text for text in some if held_out(text, share)]
            found = list(rows_of(kept, tokenizer, length))[: at_most - rows[HELD_OUT]]
            rows[HELD_OUT] += write(files[HELD_OUT], schema, found)
            documents += len(some)
            if corpus.dataset:
                if rows[HELD_OUT] == at_most:
                    break
                continue
            rest = (text for text in some if not held_out(text, share))
            found = list(rows_of(list(rest), tokenizer, length))
            tokens += sum(len(row["input_ids"]) for row in found)
            rows[TRAIN] += write(files[TRAIN], schema, found)
    return {
        "documents": documents,
        "bad_lines": bad_lines.count,
        "train_rows": rows[TRAIN],
        "train_tokens": tokens,
        "held_out_rows": rows[HELD_OUT],
    }


def write(file: Any, schema: pa.Schema, rows: list[Row]) -> int:
    """Writes the rows, and returns how many they are."""
    if rows:
        file.write_batch(pa.RecordBatch.from_pylist(rows, schema))
    return len(rows)


def check_counts(counts: dict[str, int], length: int, share: float, *, streamed: bool) -> None:
    """Checks that there is enough to learn from.

    Raises:
        ValueError: If there is too little.
    """
    if not counts["documents"]:
        raise ValueError("The corpus must hold documents, got none.")
    if counts["train_tokens"] < length and not streamed:
        raise ValueError(
            f"The corpus must fill at least one sequence of {length} tokens, got "
            f"{counts['train_tokens']} in {counts['documents']} documents; add text, or lower "
            "--sequence-length."
        )
    if not counts["held_out_rows"]:
        raise ValueError(
            f"Of {counts['documents']} documents none with two sentences was held out for "
            f"evaluation; add documents, or raise --held-out from {share:g}."
        )


def batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Gives a few hundred documents at a time."""
    while some := list(islice(documents, DOCUMENTS)):
        yield some


def read_part(folder: Path, part: str) -> Dataset:
    """Returns rows as NumPy arrays, mapped from disk."""
    return Dataset.from_file(str(folder / part)).with_format("numpy")


def lengths_of(rows: Dataset) -> np.ndarray:
    """Returns the number of tokens of every row, without reading them."""
    return pc.list_value_length(rows.data.column("input_ids")).to_numpy()


def streamed(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    share: float,
    draw: Draw,
) -> IterableDataset:
    """Returns examples of a dataset's documents, without end. Each process and each of its workers
    reads shards of its own, where there are as many."""

    def pack(texts: dict[str, list[str]]) -> dict[str, list[Any]]:
        rows = list(rows_of(texts[corpus.text_column], tokenizer, length))
        return {name: [row[name] for row in rows] for name in ("input_ids", "starts")}

    def trained_on(row: dict[str, Any]) -> bool:
        what = text(row[corpus.text_column])
        if what and not corpus.skip_bad_lines:
            raise ValueError(f"{corpus.dataset}: the column {corpus.text_column!r} {what}.")
        return not what and not held_out(row[corpus.text_column], share)

    texts = corpus.stream().shuffle(draw.seed, buffer_size=SHUFFLED)
    kept = texts.filter(trained_on)
    rows = kept.map(pack, batched=True, batch_size=DOCUMENTS, remove_columns=[corpus.text_column])
    return rows.repeat(None).map(draw, with_indices=True, remove_columns=["starts"])
