"""Labels new text with a trained classifier (`nystromer predict`)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from nystromer.checks import check_positive
from nystromer.hf.positions import num_positions
from nystromer.recipes.classify.examples import by_length, collator, encode
from nystromer.recipes.classify.tasks import Columns
from nystromer.recipes.files.outputs import new_file
from nystromer.recipes.files.tables import WRITERS
from nystromer.recipes.inputs.formats import Row
from nystromer.recipes.inputs.lines import BadLines
from nystromer.recipes.inputs.models import check_vocabulary, load_config, load_model
from nystromer.recipes.inputs.rows import read_rows
from nystromer.recipes.inputs.tokenizers import load_tokenizer
from nystromer.recipes.runs.trainer import training_arguments

UNLIMITED = 2**31  # tokens: what some tokenizers say without a limit is more


def predict(
    name: str,
    file: Path,
    output: Path,
    *,
    columns: Sequence[str | None] | None = None,
    batch_size: int = 32,
    skip_bad_lines: bool = False,
) -> int:
    """Writes every row of the file with "predicted" and "probability" to a .jsonl or .csv file.

    Args:
        name: Folder of a run, or any classifier of transformers.
        file: Rows, see `read_rows`.
        output: A new file.
        columns: Of the text, and of the second text; None in place of both or of either is what
            the model was trained on.

    Returns:
        How many lines were skipped.

    Raises:
        ValueError: If an input is bad; nothing is written then.
    """
    with new_file(output, *WRITERS) as partial:
        rows, skipped = labelled(name, file, columns, batch_size, BadLines(skip_bad_lines))
        WRITERS[output.suffix](rows, partial)
    return skipped


def labelled(
    name: str,
    file: Path,
    columns: Sequence[str | None] | None,
    batch_size: int,
    bad_lines: BadLines,
) -> tuple[list[Row], int]:
    """Returns the rows of the file with their labels, and how many lines were skipped.

    Raises:
        ValueError: As `predict`.
        FloatingPointError: If the model answers a row with NaN.
    """
    check_positive("batch_size", batch_size)
    model, tokenizer = load(name)
    text, pair = columns_of(model.config, columns)
    read = Columns(text, pair=pair)
    rows = list(read_rows(file, read.texts, bad_lines))
    taken = {name for row in rows for name in row} & {"predicted", "probability"}
    if taken:
        raise ValueError(
            f"{file} has a column {min(taken)!r} already, which would be lost; rename it."
        )
    examples = encode(tokenizer, rows, read, longest(model, tokenizer))
    order = by_length(examples)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            Path(folder), per_device_eval_batch_size=batch_size, eval_strategy="no", report_to=[]
        )
        trainer = Trainer(model, arguments, data_collator=collator(tokenizer))
        logits = trainer.predict([examples[i] for i in order]).predictions  # type: ignore[arg-type]
    probabilities = torch.tensor(logits).float().softmax(-1)
    if not probabilities.isfinite().all():
        raise FloatingPointError(f"{name} answers with NaN; nothing was written.")
    best = probabilities.max(-1)
    for i, label, probability in zip(
        order, best.indices.tolist(), best.values.tolist(), strict=True
    ):
        rows[i] |= {
            "predicted": model.config.id2label[label],
            "probability": round(probability, 6),
        }
    return rows, bad_lines.count


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the tokens at which a text is cut: as many as were trained on, or can be read."""
    positions = num_positions(model) or UNLIMITED
    length = min(positions, tokenizer.model_max_length)
    return length if length < UNLIMITED else 512


def columns_of(config: Any, given: Sequence[str | None] | None) -> tuple[str, str | None]:
    """Returns the columns of the text and of the second text, if there is one."""
    trained = getattr(config, "text_columns", None)
    text, pair = [*(trained or ["text"]), None][:2]
    other_text, other_pair = [*(given or ()), None, None][:2]
    if other_pair is not None and trained is not None and pair is None:
        raise ValueError(
            f"The model was trained on one text, got a second in the column {other_pair!r}; leave "
            "`--text-pair-column` out."
        )
    return other_text or text, other_pair or pair


def load(name: str) -> Any:
    """Loads a classifier and its tokenizer.

    Raises:
        ValueError: If there is no classifier of that name.
    """
    config = load_config(name)
    made = (config.architectures or ["nothing"])[0]
    if not made.endswith("ForSequenceClassification") or config.num_labels < 2:
        raise ValueError(
            f"{name} is a {made}, which gives no labels; train it first: nystromer train --model "
            f"{name}."
        )
    model, tokenizer = load_model(AutoModelForSequenceClassification, name), load_tokenizer(name)
    check_vocabulary(model, tokenizer, name)
    return model, tokenizer
