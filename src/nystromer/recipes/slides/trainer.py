"""The trainer of one model on the bags of one fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed

from nystromer.mil.ensemble import CLASSIFICATION, COX, NLL, Spec
from nystromer.mil.losses import cox_nll, cross_entropy, hazard_nll
from nystromer.mil.tables.labels import Case
from nystromer.recipes.runs.trainer import (
    Curves,
    RunTrainer,
    batch_sizes,
    training_arguments,
    updates,
)
from nystromer.recipes.slides.data import BagRows, collate
from nystromer.recipes.slides.settings import Settings

SAVES = 5  # of a training that no validation watches


class BagTrainer(RunTrainer):
    """Trains `model(features, mask)` by the loss of its spec, which is saved beside the weights.

    Curves are drawn at its end: trainings are many, and may be short.

    Args:
        spec: Of the model.
        class_weights: [C], if bags have weights.
    """

    def __init__(
        self, *args: Any, spec: Spec, class_weights: Tensor | None = None, **kwargs: Any
    ) -> None:
        self.spec, self.class_weights = spec, class_weights
        super().__init__(*args, **kwargs)
        self.remove_callback(Curves)
        self.model_accepts_loss_kwargs = False  # the loss is the mean of a batch

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        logits = model(inputs["features"], inputs["mask"])
        loss = loss_of(self.spec, logits, inputs["labels"], self.class_weights)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.spec.save(Path(output_dir or str(self.args.output_dir)))


def loss_of(spec: Spec, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the loss of logits [B, K] for labels as `data.targets` gives them."""
    if spec.task == CLASSIFICATION:
        return cross_entropy(logits, labels, None if weights is None else weights.to(logits.device))
    times, events = labels[:, 0].contiguous(), labels[:, 1] > 0
    if spec.loss == COX:
        return cox_nll(logits, times, events)
    edges = torch.tensor(spec.edges, dtype=times.dtype, device=times.device)
    return hazard_nll(logits, torch.bucketize(times, edges, right=True), events)


def make_trainer(
    folder: Path,
    settings: Settings,
    spec: Spec,
    train: BagRows,
    val: BagRows,
    seed: int,
) -> BagTrainer:
    """Returns the trainer of a new model.

    Numbers are float32 on every device: in bfloat16 many bags would get the same probability.

    Raises:
        ValueError: If the batch cannot be shared out over the processes.
    """
    sizes = batch_sizes(settings.batch_size, settings.bags_at_a_time)
    set_seed(seed)
    model = spec.build()
    weights = None
    if settings.class_weights:
        weights = rarity(train.targets, len(spec.classes))
    watched = len(val) > 0
    return BagTrainer(
        model,
        arguments(folder, settings, sizes, len(train), watched, seed),
        spec=spec,
        class_weights=weights,
        train_dataset=train,
        eval_dataset=val if watched else None,
        data_collator=collate,
        optimizer_cls_and_kwargs=(torch.optim.RAdam, {"lr": settings.learning_rate}),
        callbacks=[EarlyStoppingCallback(settings.patience)] if watched else [],
    )


def arguments(
    folder: Path, settings: Settings, sizes: dict[str, int], count: int, watched: bool, seed: int
) -> TrainingArguments:
    """Returns what Trainer is told for `count` training bags."""
    epoch = updates(count, sizes)
    every = epoch if watched else epoch * max(1, settings.epochs // SAVES)
    return training_arguments(
        folder,
        num_train_epochs=settings.epochs,
        **sizes,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # the published training does not clip
        bf16=False,
        eval_strategy="steps" if watched else "no",
        eval_steps=every if watched else None,
        save_steps=every,
        logging_steps=epoch,
        load_best_model_at_end=watched,
        metric_for_best_model="loss" if watched else None,
        greater_is_better=False if watched else None,
        label_names=["labels"],
        seed=seed,
    )


def rarity(labels: Tensor, classes: int) -> Tensor:
    """Returns a weight for each class, [C]: bags / (C x bags of the class), a mean of 1 a bag."""
    counts = torch.bincount(labels, minlength=classes)
    return len(labels) / (classes * counts.float())


def time_edges(cases: Sequence[Case], bins: int) -> tuple[float, ...]:
    """Returns the times between intervals with as many events each.

    Raises:
        ValueError: If too many events are at one time.
    """
    times = torch.tensor([x.time for x in cases if x.event], dtype=torch.float32)
    edges = times.quantile(torch.linspace(0, 1, bins + 1)[1:-1]).unique()
    if len(edges) < bins - 1:
        raise ValueError(
            f"`--bins` must be at most {len(edges) + 1}, got {bins}: so many of the {len(times)} "
            "events of a training part are at the same time."
        )
    return tuple(edges.tolist())


def spec_of(
    settings: Settings, model: str, width: int, encoder: str | None, classes: Sequence[str],
    cases: Sequence[Case],
) -> Spec:  # fmt: skip
    """Returns what a model is that is trained on bags of which `cases` is known."""
    loss = settings.survival_loss
    return Spec(
        model=model,
        width=width,
        task=settings.task,
        classes=tuple(classes),
        loss=loss,
        edges=time_edges(cases, settings.bins) if loss == NLL else (),
        bag=settings.bag,
        encoder=encoder,
        options=settings.options,
    )
