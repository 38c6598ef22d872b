"""What `heatmap` and `faithfulness` share: trained models, and maps that are means over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromer.mil.features.bags import Bag
from nystromer.mil.features.folders import duplicates, find_bags
from nystromer.mil.ids import listed
from nystromer.mil.maps import Evidence, explain, for_class
from nystromer.mil.models import Model, load_transmil

WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors")
RISK = "risk"
Track = Callable[[Sequence[Any], str], Iterable[Any]]


def silently(items: Sequence[Any], what: str) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class Trained:
    """
    Args:
        models: The members of an ensemble, ready for prediction.
        classes: Names, in the order of the logits; (RISK,) for survival.
        risks: Of survival models, what turns logits into the risk, one a model.
        check: Says whether the models can read a bag.
    """

    models: Sequence[Model]
    classes: tuple[str, ...]
    risks: Sequence[Evidence]
    check: Callable[[Bag], None]

    def evidence(self, explained: str) -> list[Evidence]:
        """Returns what is explained of each model."""
        if self.risks:
            return list(self.risks)
        return [for_class(self.classes.index(explained))] * len(self.models)

    @torch.no_grad()
    def predicted(self, features: Tensor) -> str:
        """Returns the class with the highest mean probability; RISK for survival."""
        if self.risks or len(self.classes) == 1:
            return self.classes[-1]
        answers = [model(features[None])[0].float().softmax(-1) for model in self.models]
        return self.classes[int(torch.stack(answers).mean(0).argmax())]

    def known(self, name: str) -> str:
        """Returns a class by its name.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self.classes:
            raise ValueError(f"`--class` must be one of {', '.join(self.classes)}, got {name!r}.")
        return name

    def explain(self, features: Tensor, explained: str, **options: Any) -> Tensor:
        """Returns the mean over the models of `explain`, [N].

        Raises:
            FloatingPointError: If a score is not finite.
        """
        pairs = zip(self.models, self.evidence(explained), strict=True)
        scores = [explain(model, features, evidence, **options) for model, evidence in pairs]
        mean = torch.stack(scores).mean(0)
        if not mean.isfinite().all():
            raise FloatingPointError("The map holds NaN or infinity; nothing was written.")
        return mean


def load_trained(run: Path) -> Trained:
    """Returns the models of a run of `nystromer mil train`, or published weights of a TransMIL.

    Args:
        run: The folder, or a .pt, .ckpt or .safetensors file.

    Raises:
        ValueError: If nothing there can be loaded.
    """
    if run.is_file() and run.suffix in WEIGHTS:
        model = load_transmil(run)
        names = tuple(str(i) for i in range(model._fc2.out_features))
        return Trained([model], names, (), lambda bag: _check_width(bag, model.width))
    from nystromer.mil.ensemble import load_ensemble

    ensemble = load_ensemble(run)
    spec = ensemble.spec
    if spec.classes:
        return Trained(ensemble.models, spec.classes, (), ensemble.check)

    def risk_of(member: Any) -> Evidence:
        return lambda logits: member.answers(logits)[:, 0]

    risks = [risk_of(member) for member, _ in ensemble.members]
    return Trained(ensemble.models, (RISK,), risks, ensemble.check)


def find_checked(features: Path, trained: Trained, track: Track) -> list[Bag]:
    """Returns the bags that the models can read.

    Raises:
        ValueError: If one cannot be read, is empty, or stands in two files.
    """
    bags = find_bags(features, track=lambda files: track(files, "Looking at files"))
    if twice := duplicates(bags):
        raise ValueError(
            f"Slides stand in more than one file ({listed(twice)}); name a folder with one of them."
        )
    for bag in bags:
        if not bag.num_patches:
            raise ValueError(f"{bag.path} has no patches; take it away.")
        trained.check(bag)
    return bags


def _check_width(bag: Bag, width: int) -> None:
    if bag.width != width:
        raise ValueError(
            f"Features must have the width that the model was trained with, {width}, got "
            f"{bag.width} in {bag.id}; encode the slides as those of the training."
        )
