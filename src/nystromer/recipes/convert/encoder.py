"""What `nystromer inspect`, `calibrate` and `convert` do to an encoder, with text from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel

from nystromer.hf.calibration.calibrate import calibration
from nystromer.hf.calibration.results import Calibration
from nystromer.hf.conversion.nystromize import nystromize, uniform_plan
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.hf.models.original_checkpoints import load_original
from nystromer.hf.positions import num_positions, resize_positions
from nystromer.recipes.convert.distill import Distilled, Settings, distill
from nystromer.recipes.files.fingerprints import of_file, of_model, of_pieces
from nystromer.recipes.files.outputs import new_folder
from nystromer.recipes.inputs.models import check_vocabulary, load_config, load_model, not_finite
from nystromer.recipes.inputs.plans import read_plan
from nystromer.recipes.inputs.sentences import copy_modules
from nystromer.recipes.inputs.text import passages, read_text, standard_text
from nystromer.recipes.inputs.tokenizers import load_tokenizer
from nystromer.recipes.runs.run import open_run

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
    name: str,
    output: Path,
    choice: LayerChoice,
    *,
    plan: Path | None = None,
    positions: int | None = None,
) -> None:
    """Writes the encoder with other attention, by the plan or else that choice in every layer.

    With `positions` it reads so many tokens, see `resize_positions`. A folder of
    sentence-transformers becomes another one; its texts are cut at the model's positions.

    Raises:
        ValueError: If the model or the plan cannot be read, the output exists, or as `nystromize`.
    """
    with new_folder(output) as partial:
        chosen = None if plan is None else read_plan(plan)
        model, tokenizer = load_encoder(name)
        if positions is not None:
            resize_positions(model, positions)
        nystromize(model, plan=chosen or uniform_plan(model, choice)).save_pretrained(partial)
        copy_modules(name, partial)
        tokenizer.model_max_length = num_positions(model) or tokenizer.model_max_length
        tokenizer.save_pretrained(partial)


def convert_original(
    path: Path, output: Path, *, num_landmarks: int = 64, num_heads: int | None = None
) -> None:
    """Writes a checkpoint of the original repository as transformers' classes read it.

    Raises:
        ValueError: If the output exists, the weights are not finite, or as `load_original`.
    """
    with new_folder(output) as partial:
        model = load_original(path, num_landmarks=num_landmarks, num_heads=num_heads)
        if wrong := not_finite(model):
            raise ValueError(f"{path} is damaged: {wrong}.")
        model.save_pretrained(partial)


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

    An interrupted run goes on when it is called again.

    Raises:
        ValueError: If there are no files, the output exists, or as `calibrate_encoder`.
        FloatingPointError: If a loss or a weight is not finite.
    """
    settings = settings or Settings()
    if not files:
        raise ValueError("A distillation needs text to learn from, got none; pass --text FILE.")
    about = {"model": name, "plan": plan, "choice": asdict(choice), **asdict(settings)}
    with open_run(output, about, resume=True) as run:
        texts = [read_text(path) for path in files]
        chosen = None if plan is None else read_plan(plan)
        model, tokenizer = load_encoder(name)
        wanted = settings.steps * settings.batch_size + HELD_OUT
        ids = passages(tokenizer, texts, wanted, length=passage_length(model))
        inputs = {f"the model {name}": of_model(name, model.config)}
        inputs["the passages of --text"] = of_pieces([ids.numpy().tobytes()])
        if plan is not None:
            inputs[f"the plan {plan}"] = of_file(plan)
        if run.begin(inputs) is not None:
            raise ValueError(
                f"`--output` must be a new folder, got {output}, which holds a finished run."
            )
        if len(ids) < HELD_OUT + settings.calibration_passages:
            raise ValueError(
                f"A distillation needs at least {HELD_OUT + settings.calibration_passages} "
                f"passages of {ids.shape[1]} tokens, {HELD_OUT} of them held out, got {len(ids)}; "
                "add text."
            )
        if chosen is None and choice.attention == "clustered":
            chosen = uniform_plan(model, choice)
        return distill(
            run,
            model,
            tokenizer,
            ids[HELD_OUT:],
            ids[:HELD_OUT],
            num_landmarks=choice.num_landmarks,
            plan=chosen,
            settings=settings,
        )


def load_encoder(name: str) -> tuple[PreTrainedModel, Any]:
    """Loads a model and its tokenizer from a folder or from the Hub.

    Raises:
        ValueError: If either cannot be loaded, or there is no softmax attention to convert.
    """
    config = load_config(name)
    if config.model_type == "nystromformer":
        raise ValueError(
            f"{name} is a Nyströmformer, whose attention is Nyström attention already; there is "
            "nothing to convert."
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder with a decoder ({config.model_type}); save its encoder alone: "
            "model.get_encoder().save_pretrained(FOLDER)."
        )
    model, tokenizer = load_model(AutoModel, name, new_head=True), load_tokenizer(name)
    check_vocabulary(model, tokenizer, name)
    return model, tokenizer


def passage_length(model: PreTrainedModel) -> int:
    """Returns the tokens of a passage: as many as the model has positions, at most 512."""
    positions = num_positions(model) or getattr(model.config, "max_position_embeddings", None)
    return min(LENGTH, positions or LENGTH)
