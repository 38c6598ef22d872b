"""Defines NystromformerForPreTraining, which learns masked words and the order of sentences."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.albert.modeling_albert import AlbertForPreTrainingOutput

from nystromer.gradients import zero_gradients
from nystromer.hf.models.configuration import NystromformerConfig
from nystromer.hf.models.nystromformer import NystromformerForMaskedLM


class NystromformerForPreTraining(NystromformerForMaskedLM):
    """Predicts masked words and whether two segments were swapped: the paper's pre-training.

    transformers has no such class. Its NystromformerForMaskedLM reads what this one saves, and the
    other way round.
    """

    accepts_loss_kwargs = True

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.sentence_order = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        sentence_order_label: Tensor | None = None,
        only_asked: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AlbertForPreTrainingOutput:
        """Predicts words and order; the loss is the sum of the two mean cross entropies.

        Args:
            labels: [B, N], -100 where nothing is asked.
            sentence_order_label: [B], 1 if the two segments were swapped.
            only_asked: Whether words are predicted only where labels ask, for a fraction of the
                cost; then prediction_logits is [asked, V]. Of a shared sequence they are those of
                this part.
            num_items_in_batch: What Trainer passes, the words asked in all batches of an update:
                the loss is this batch's part of the update's.
        """
        kwargs["return_dict"] = True
        outputs = self.nystromformer(input_ids, attention_mask=attention_mask, **kwargs)
        states, shared = outputs.last_hidden_state, self.shared_sequence  # [B, N, E]
        if shared is None:
            first = states[:, 0]
        else:
            given: Any = kwargs.get("inputs_embeds") if input_ids is None else input_ids
            first = shared.first(states, given.shape[1])
        order = self.sentence_order(self.dropout(torch.tanh(self.pooler(first))))
        losses: list[Tensor] = []
        unused: list[nn.Module] = []
        share: Tensor | float = 1.0
        if labels is not None:
            asked = labels != -100
            own, own_asked = (x if shared is None else shared.part(x) for x in (labels, asked))
            if only_asked:
                states, own = states[own_asked], own[own_asked]
            words = self.cls(states)
            total = F.cross_entropy(words.flatten(0, -2), own.flatten(), reduction="sum")
            total = total if shared is None else shared.summed(total)
            losses.append(total / asked.sum().clamp(min=1))
            if num_items_in_batch is not None:
                share = asked.sum() / num_items_in_batch
        else:
            words = self.cls(states)
            unused += [self.cls]
        if sentence_order_label is not None:
            losses.append(F.cross_entropy(order, sentence_order_label))
        else:
            unused += [self.pooler, self.sentence_order]
        loss = None
        if losses:
            parameters = (x for module in unused for x in module.parameters())
            loss = zero_gradients(share * sum(losses[1:], losses[0]), parameters)
        return AlbertForPreTrainingOutput(
            loss=loss,
            prediction_logits=words,
            sop_logits=order,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
