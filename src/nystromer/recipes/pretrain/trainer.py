"""transformers' Trainer for masked words and sentence order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EvalPrediction

from nystromer.recipes.pretrain.pairs import Draw, Example
from nystromer.recipes.runs.order import EpochDataset
from nystromer.recipes.runs.trainer import RunTrainer


class Examples(EpochDataset):
    """Gives rows as the model takes them, drawn anew in every epoch."""

    def __init__(self, rows: Any, draw: Draw) -> None:
        self.rows, self.draw, self.epoch = rows, draw, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.draw(self.rows[index], self.epoch * len(self) + index)


class Pretraining(RunTrainer):
    """Predicts words where they are asked only; its evaluations keep five numbers a row."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            keep_one_bias(self.model)
        elif os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            raise ValueError(
                "FSDP was asked for, but accelerate shards nothing on "
                f"{self.accelerator.distributed_type.value}; leave FSDP out to run DDP."
            )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        self.args.dataloader_drop_last = False  # every row counts; in training, equal batches do
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        return super().compute_loss(model, {**inputs, "only_asked": True}, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[None, Tensor, Tensor]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, only_asked=True)
        shared: Any = getattr(self.model, "shared_sequence", None)
        labels = inputs["labels"] if shared is None else shared.part(inputs["labels"])
        swapped = inputs["sentence_order_label"]
        found = answers(outputs.prediction_logits, outputs.sop_logits, labels, swapped)
        if shared is not None:
            found = torch.cat([shared.summed(found[:, :3]), found[:, 3:]], 1)
        return None, found, swapped


def keep_one_bias(model: Any) -> None:
    """Takes the second name from the decoder's bias: FSDP refuses one parameter in two of its
    groups. from_pretrained gives a saved model both again."""
    del model.cls.predictions.bias
    tied = {**model._tied_weights_keys}
    del tied["cls.predictions.decoder.bias"]
    model._tied_weights_keys = model.all_tied_weights_keys = tied


def answers(words: Tensor, order: Tensor, labels: Tensor, swapped: Tensor) -> Tensor:
    """Returns five numbers a row, [B, 5]: the words asked, the sum of their losses and how many
    were right, then the loss of its order and whether that was right."""
    asked = labels != -100
    wanted = labels[asked]
    words_found = [
        torch.ones(len(wanted), device=words.device),
        F.cross_entropy(words.float(), wanted, reduction="none"),
        (words.argmax(-1) == wanted).float(),
    ]
    row = asked.nonzero()[:, 0]
    order_found = [
        F.cross_entropy(order.float(), swapped, reduction="none"),
        (order.argmax(-1) == swapped).float(),
    ]
    none = words.new_zeros(len(asked), dtype=torch.float32)
    return torch.stack([*(none.index_add(0, row, x) for x in words_found), *order_found], 1)


def scores(found: EvalPrediction) -> dict[str, float]:
    """Returns loss and accuracy over all words asked, and over all rows for sentence order."""
    rows = torch.as_tensor(found.predictions, dtype=torch.float64)
    asked, loss, right, order_loss, order_right = rows.sum(0).tolist()
    return {
        "loss": loss / asked + order_loss / len(rows),
        "word_loss": loss / asked,
        "word_accuracy": right / asked,
        "order_loss": order_loss / len(rows),
        "order_accuracy": order_right / len(rows),
    }
