"""`nystromer predict`: labels for new text."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, Trainer

import nystromer.hf  # noqa: F401  # the Auto classes take its models
from nystromer.recipes.classify.examples import by_length, collator, encode
from nystromer.recipes.classify.tasks import Columns
from nystromer.recipes.shared.rows import BadLines, Row, read_rows
from nystromer.recipes.shared.tokenizers import load_tokenizer
from nystromer.recipes.shared.trainer import training_arguments


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
    if output.exists() or output.suffix not in WRITERS or not output.parent.is_dir():
        raise ValueError(f"`--output` must be a new .jsonl or .csv file in a folder, got {output}.")
    model, tokenizer = load(name)
    text, pair = columns_of(model.config, columns)
    bad_lines = BadLines(skip_bad_lines)
    rows = list(read_rows(file, [text, pair] if pair else [text], bad_lines))
    taken = {name for row in rows for name in row} & {"predicted", "probability"}
    if taken:
        raise ValueError(
            f"{file} has a column {min(taken)!r} already, which would be lost; rename it."
        )
    examples = encode(tokenizer, rows, Columns(text, pair=pair), tokenizer.model_max_length)
    order = by_length(examples)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            Path(folder), per_device_eval_batch_size=batch_size, eval_strategy="no", report_to=[]
        )
        trainer = Trainer(model, arguments, data_collator=collator(tokenizer))
        logits = trainer.predict([examples[i] for i in order]).predictions  # type: ignore[arg-type]
    best = torch.tensor(logits).float().softmax(-1).max(-1)
    for i, label, probability in zip(
        order, best.indices.tolist(), best.values.tolist(), strict=True
    ):
        rows[i] |= {
            "predicted": model.config.id2label[label],
            "probability": round(probability, 6),
        }
    partial = output.with_name(output.name + ".partial")
    WRITERS[output.suffix](rows, partial)
    partial.replace(output)
    return bad_lines.count


def columns_of(config: Any, given: Sequence[str | None] | None) -> tuple[str, str | None]:
    """The columns of the text and of the second text, if there is one."""
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
    """
    Raises:
        ValueError: If there is no classifier of that name.
    """
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0].rstrip(". ")
        raise ValueError(f"No classifier can be loaded from {name}: {first}.") from error
    made = (model.config.architectures or ["nothing"])[0]
    if not made.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{name} is a {made}, which gives no labels; train it first: nystromer train --model "
            f"{name}."
        )
    return model.eval(), load_tokenizer(name)


def write_json_lines(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)


WRITERS = {".jsonl": write_json_lines, ".csv": write_csv}
