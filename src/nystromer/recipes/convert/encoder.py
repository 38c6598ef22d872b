"""What `nystromer inspect`, `calibrate` and `convert` do: an encoder by name, text from files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from nystromer.hf.calibration.calibrate import calibration
from nystromer.hf.calibration.results import Calibration
from nystromer.hf.conversion.nystromize import nystromize, uniform_plan
from nystromer.hf.conversion.plan import LayerChoice, Plan
from nystromer.hf.models.original_checkpoints import load_original
from nystromer.recipes.convert.distill import Distilled, Settings, distill
from nystromer.recipes.shared.text import passages, read_text, standard_text

LENGTH = 512  # tokens of a passage, fewer for a model with fewer positions
HELD_OUT = 16  # passages of a distillation


def calibrate_encoder(
    name: str,
    files: Sequence[Path] = (),
    *,
    num_landmarks: int = 64,
    max_exact_layers: int | None = None,
    max_error: float | None = None,
    max_keys: float | None = None,
    max_time: float | None = None,
    length: int | None = None,
    count: int = 8,
) -> Calibration:
    """Calibrates an encoder on `count` passages of the files; without files, of Python's own help.

    Raises:
        ValueError: If the model or a file cannot be read, the text is too short, or as `calibrate`.
    """
    texts = [read_text(path) for path in files] or [standard_text()]
    model, tokenizer = load_encoder(name)
    ids = passages(tokenizer, texts, count, length=passage_length(model))
    return calibration(
        model,
        [{"input_ids": x} for x in ids.split(4)],
        num_landmarks=num_landmarks,
        max_exact_layers=max_exact_layers,
        max_error=max_error,
        max_keys=max_keys,
        max_time=max_time,
        length=length,
    )


def convert_encoder(
    name: str, output: Path, choice: LayerChoice, *, plan: Path | None = None
) -> None:
    """Writes the encoder with other attention, by the plan or else that choice in every layer.

    Raises:
        ValueError: If the model or the plan cannot be read, the output exists, or as `nystromize`.
    """
    check_new(output)
    chosen = None if plan is None else read_plan(plan)
    model, tokenizer = load_encoder(name)
    nystromize(model, plan=chosen or uniform_plan(model, choice)).save_pretrained(output)
    tokenizer.save_pretrained(output)


def convert_original(
    path: Path, output: Path, *, num_landmarks: int = 64, num_heads: int | None = None
) -> None:
    """Writes a checkpoint of the original repository as transformers' classes read it.

    Raises:
        ValueError: If the output exists, or as `load_original`.
    """
    check_new(output)
    model = load_original(path, num_landmarks=num_landmarks, num_heads=num_heads)
    model.save_pretrained(output)


def distill_encoder(
    name: str,
    files: Sequence[Path],
    output: Path,
    choice: LayerChoice,
    *,
    plan: Path | None = None,
    settings: Settings | None = None,
) -> Distilled:
    """Writes the encoder with other attention, trained on the files' passages.

    Without a plan every layer is swapped: clustered as the choice says, or Nyström by the plan that
    `calibrate` makes without exact heads.

    An interrupted run goes on from `output`/checkpoints.

    Raises:
        ValueError: If there are no files, the output exists, or as `calibrate_encoder`.
    """
    settings = settings or Settings()
    check_new(output, allowed="checkpoints")
    if any(not path.name.startswith("checkpoint-") for path in output.glob("checkpoints/*")):
        raise ValueError(f"{output / 'checkpoints'} holds other files; name a new `--output`.")
    if not files:
        raise ValueError("A distillation needs text to learn from, got none; pass --text FILE.")
    texts = [read_text(path) for path in files]
    chosen = None if plan is None else read_plan(plan)
    model, tokenizer = load_encoder(name)
    wanted = settings.steps * settings.batch_size + HELD_OUT
    ids = passages(tokenizer, texts, wanted, length=passage_length(model))
    if len(ids) < HELD_OUT + settings.calibration_passages:
        raise ValueError(
            f"A distillation needs at least {HELD_OUT + settings.calibration_passages} passages of "
            f"{ids.shape[1]} tokens, {HELD_OUT} of them held out, got {len(ids)}; add text."
        )
    if chosen is None and choice.attention == "clustered":
        chosen = uniform_plan(model, choice)
    train, held_out = ids[HELD_OUT:], ids[:HELD_OUT]
    checkpoints = output / "checkpoints"
    result = distill(
        model,
        train,
        held_out,
        num_landmarks=choice.num_landmarks,
        plan=chosen,
        settings=settings,
        checkpoints=str(checkpoints),
    )
    result.student.save_pretrained(output)
    tokenizer.save_pretrained(output)
    shutil.rmtree(checkpoints)
    return result


def load_encoder(name: str) -> tuple[PreTrainedModel, Any]:
    """A model and its tokenizer from a folder or from the Hub.

    Raises:
        ValueError: If either cannot be loaded.
    """
    try:
        return AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0].rstrip(". ")
        raise ValueError(f"No model and tokenizer can be loaded from {name}: {first}.") from error


def read_plan(path: Path) -> Plan:
    """
    Raises:
        ValueError: If it cannot be read, or as `Plan.from_json`.
    """
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"The plan {path} cannot be read: {error.strerror}.") from error


def passage_length(model: PreTrainedModel) -> int:
    return min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)


def check_new(output: Path, allowed: str = "") -> None:
    """
    Raises:
        ValueError: If the folder holds anything but `allowed`, or is a file.
    """
    if output.exists() and (
        not output.is_dir() or any(path.name != allowed for path in output.iterdir())
    ):
        raise ValueError(f"`--output` must be a new folder, got {output}, which exists already.")
