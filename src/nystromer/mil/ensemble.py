"""Trained models of a run as one: what `config.json` says of each, and the mean of their answers.

RUN/fold_0/seed_0/config.json, model.safetensors, and so on for every fold and seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromer.mil.features.arrays import readable
from nystromer.mil.features.bags import Bag
from nystromer.mil.losses import risk_of_hazards
from nystromer.mil.models import Model, build_model

CONFIG, WEIGHTS, METRICS = "config.json", "model.safetensors", "metrics.json"
CLASSIFICATION, SURVIVAL = TASKS = ("classification", "survival")
NLL, COX = LOSSES = ("nll", "cox")  # of survival


@dataclass(frozen=True)
class Spec:
    """Says what a trained model is, so that it can be built again.

    Args:
        model: A key of `nystromer.mil.models.MODELS`.
        width: D, features of a patch.
        task: "classification" or "survival".
        classes: Names of the classes, in the order of the logits.
        loss: Of survival: "nll", a logit an interval of time, or "cox", one logit.
        edges: Times between the intervals of "nll".
        bag: What one bag was: "slide" or "patient".
        encoder: The model that made the features, if the files say it.
        options: More that the model was built with.
    """

    model: str
    width: int
    task: str = CLASSIFICATION
    classes: tuple[str, ...] = ()
    loss: str | None = None
    edges: tuple[float, ...] = ()
    bag: str = "slide"
    encoder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_logits(self) -> int:
        """Returns the number of logits of a bag."""
        if self.task == CLASSIFICATION:
            return len(self.classes)
        return 1 if self.loss == COX else len(self.edges) + 1

    def build(self) -> Model:
        """Returns a new model of this kind."""
        return build_model(self.model, self.width, self.num_logits, **self.options)

    def answers(self, logits: Tensor) -> Tensor:
        """Returns probabilities [..., C] of logits [..., C], or the risk [..., 1] of survival."""
        if self.task == CLASSIFICATION:
            return logits.softmax(-1)
        return logits if self.loss == COX else risk_of_hazards(logits)[..., None]

    def save(self, folder: Path) -> None:
        """Writes config.json into a folder."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Ensemble:
    """
    Args:
        spec: What the models are; the edges are those of the first.
        members: Each with its own spec and its model, ready for prediction.
        names: The folders of the members, such as fold_0/seed_0.
    """

    spec: Spec
    members: Sequence[tuple[Spec, Model]]
    names: Sequence[str]

    @property
    def models(self) -> list[Model]:
        return [model for _, model in self.members]

    @torch.inference_mode()
    def __call__(self, features: Tensor) -> Tensor:
        """Returns the mean answer of the members to a bag [N, D]: [C] probabilities, or [1] risk.

        Raises:
            ValueError: If the width is another.
        """
        found = [spec.answers(model(features[None])[0].float()) for spec, model in self.members]
        return torch.stack(found).mean(0)

    def to(self, device: str | torch.device) -> Ensemble:
        """Moves all models to a device."""
        for model in self.models:
            model.to(device)
        return self

    def check(self, bag: Bag) -> None:
        """Checks that the models can read a bag.

        Raises:
            ValueError: If its features are of another width, or of another encoder.
        """
        for what, had, has in (
            ("width", self.spec.width, bag.width),
            ("encoder", self.spec.encoder, bag.encoder),
        ):
            if has != had and has is not None and had is not None:
                raise ValueError(
                    f"Features must have the {what} that the models were trained with, {had}, got "
                    f"{has} in {bag.id}; encode the slides as those of the training."
                )


def load_ensemble(run: str | Path) -> Ensemble:
    """Returns the models that `nystromer mil train` left in a folder.

    Args:
        run: The folder, that of one of its models (RUN/abmil), or one member (RUN/fold_0/seed_0).

    Raises:
        ValueError: If there are none, training is not finished, several models are there, or a file
            is damaged.
    """
    run = Path(run)
    folders = sorted(run.glob("fold_*/seed_*"), key=_numbers)
    if not folders and (run / CONFIG).exists():
        folders = [run]
    if not folders and (several := sorted({x.parents[1].name for x in run.glob("*/fold_*/*")})):
        raise ValueError(
            f"{run} holds several models, {', '.join(several)}; name the folder of one, such as "
            f"{run / several[0]}."
        )
    if not folders:
        raise ValueError(f"{run} holds no trained models; name an --output of nystromer mil train.")
    whole = folders == [run] or (run / METRICS).exists() or (run.parent / METRICS).exists()
    if not whole or not all((x / METRICS).exists() for x in folders):
        raise ValueError(
            f"The training in {run} is not finished; give its command again with --resume, or name "
            "the folder of one member, such as fold_0/seed_0."
        )
    members = [_load(folder) for folder in folders]
    first = members[0][0]
    for folder, (spec, _) in zip(folders, members, strict=True):
        if (spec.width, spec.classes, spec.loss) != (first.width, first.classes, first.loss):
            raise ValueError(f"{folder} is another kind of model than {folders[0]}; take it away.")
    return Ensemble(first, members, [x.relative_to(run).as_posix() for x in folders])


def _load(folder: Path) -> tuple[Spec, Model]:
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("classes", "edges"):
            fields[name] = tuple(fields[name])
        spec = Spec(**fields)
        model = spec.build()
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path} does not say what the model is ({error}).") from error
    from safetensors.torch import load_file

    with readable(folder / WEIGHTS):
        state = load_file(folder / WEIGHTS)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(
            f"{folder / WEIGHTS} holds no {spec.model} for features of width {spec.width}, as "
            f"{CONFIG} says: {' '.join(lines[1:2]).rstrip('. ')}."
        ) from error
    model.eval()
    return spec, model


def _numbers(folder: Path) -> tuple[tuple[int, str], ...]:
    """fold_10 behind fold_9."""
    words = (part.rpartition("_")[2] for part in folder.parts[-2:])
    return tuple((int(word) if word.isdecimal() else -1, word) for word in words)
