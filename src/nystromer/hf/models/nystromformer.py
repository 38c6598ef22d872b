"""Builds transformers' Nyströmformer models with this package's attention: an import is swapped,
names of parameters and config fields stay.

Nothing is copied: transformers builds its model, then the classes in `OURS` take the place of its.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.models.nystromformer import modeling_nystromformer as theirs
from transformers.utils.generic import can_return_tuple

from nystromer.hf.conversion.interface import NAME
from nystromer.hf.masks import key_mask
from nystromer.hf.models.configuration import NystromformerConfig
from nystromer.hf.models.embeddings import Embeddings, NgramEmbedding
from nystromer.hf.models.self_attention import EXACT, SelfAttention, Taps
from nystromer.hf.positions import refuse_longer_inputs

if TYPE_CHECKING:
    from nystromer.distributed import SharedSequence


class Swapped(PreTrainedModel):
    """Stands before a class of transformers: builds its model, then swaps the parts in `OURS`."""

    config_class = NystromformerConfig
    # Their losses are means, but **kwargs makes Trainer take them for parts of a sum: it would add
    # up the gradients of accumulated batches and processes.
    accepts_loss_kwargs = False
    shared_sequence: Any = None  # a SharedSequence, of nystromer.distributed.sequence_parallel
    shareable = True

    def __init__(self, config: NystromformerConfig) -> None:
        if not isinstance(config, NystromformerConfig):
            implementation = config._attn_implementation
            config = NystromformerConfig.from_dict(config.to_dict())
            config._attn_implementation = implementation
        implementation = self.get_correct_attn_implementation(config._attn_implementation)
        option = config.inv_coeff_init_option
        config._attn_implementation = None  # transformers' own classes fail with "sdpa"
        config.inv_coeff_init_option = False  # and with True
        super().__init__(config)
        config._attn_implementation = implementation
        config.inv_coeff_init_option = option
        for module in self.modules():
            if type(module) in OURS:
                module.__class__ = OURS[type(module)]
            if isinstance(module, SelfAttention):
                module.config = config
                if config.conv_kernel_size is not None:
                    module.conv.__class__ = Taps
        for module in list(self.modules()):
            if isinstance(module, Embeddings):
                module.ngram_embeddings = None
                if config.ngram_size > 1:
                    module.ngram_embeddings = NgramEmbedding(config)
                    self._init_weights(module.ngram_embeddings)
        refuse_longer_inputs(self)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NgramEmbedding):  # their sum as large as a token's own
            std = self.config.initializer_range / (self.config.ngram_size - 1) ** 0.5
            init.normal_(module.weight, std=std)
        if isinstance(module, theirs.NystromformerLMPredictionHead):  # theirs leaves what was there
            init.zeros_(module.bias)

    def check_shareable(self) -> None:
        """Raises a ValueError if the sequences of this model cannot be cut over processes."""
        name = type(self).__name__
        if not self.shareable:
            raise ValueError(
                f"sequence_parallel cannot cut the sequences of {name}, whose head reads all of "
                "their tokens; it takes NystromformerModel, NystromformerForMaskedLM, "
                "NystromformerForPreTraining and NystromformerForSequenceClassification."
            )
        if self.config.exact_attention or self.config._attn_implementation in EXACT:
            raise ValueError(
                f"sequence_parallel cannot cut the sequences of {name} with exact attention, whose "
                "processes would exchange all keys and values; make it with Nyström attention."
            )

    def get_correct_attn_implementation(self, requested: str | None, *args: Any) -> str:
        """Returns "nystrom", which also makes masks of [B, N], unless another one is requested.

        Raises:
            ValueError: If it is neither "nystrom" nor one for exact attention.
        """
        if requested not in (None, NAME, *EXACT):
            raise ValueError(
                f"{type(self).__name__} has attn_implementation='nystrom', and 'sdpa' or 'eager' "
                f"for exact attention, got {requested!r}."
            )
        return requested or NAME


class NystromformerModel(Swapped, theirs.NystromformerModel):
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' model. Of a shared sequence, states are those of this part."""
        inputs = [input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds]
        if self.shared_sequence is not None:
            embeddings: Any = self.embeddings
            inputs = embeddings.part_of(*inputs, self.shared_sequence)
        return super().forward(*inputs, **kwargs)


class NystromformerForMaskedLM(Swapped, theirs.NystromformerForMaskedLM):
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """As transformers' model. Of a shared sequence, the logits are those of this part."""
        kwargs["return_dict"] = True
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        if self.shared_sequence is None or labels is None:
            return super().forward(*inputs, labels=labels, **kwargs)
        outputs = super().forward(*inputs, **kwargs)
        part = self.shared_sequence.part(labels)
        total = F.cross_entropy(outputs.logits.flatten(0, 1), part.flatten(), reduction="sum")
        outputs.loss = self.shared_sequence.summed(total) / (labels != -100).sum()
        return outputs


class NystromformerForSequenceClassification(
    Swapped, theirs.NystromformerForSequenceClassification
):
    """Judges a text by its first token or their mean, as the config's `classifier_pooling` says."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        outputs = self.nystromformer(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs
        )
        states, shared = outputs.last_hidden_state, self.shared_sequence  # [B, N, E]
        if self.config.classifier_pooling == "mean":
            states = mean_of_tokens(states, attention_mask, shared)
        elif shared is not None:
            given: Any = inputs_embeds if input_ids is None else input_ids
            states = shared.first(states, given.shape[1])[:, None]
        logits = self.classifier(states)  # of the first
        return SequenceClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def mean_of_tokens(
    states: Tensor, mask: Tensor | None, shared: SharedSequence | None = None
) -> Tensor:
    """Returns the mean state of each sequence's real tokens, [B, 1, E], from [B, N, E] and any mask
    that the model takes. Of a shared sequence, states are those of this part, and mask is whole."""
    if mask is None and shared is None:
        return states.mean(1, keepdim=True)
    if mask is None:
        weights = torch.ones_like(states[..., :1])
    else:
        real: Any = mask.bool() if mask.dim() == 2 else key_mask(mask, len(states))
        weights = (real if shared is None else shared.part(real)).unsqueeze(2).to(states.dtype)
    sums = (states * weights).sum(1, keepdim=True), weights.sum(1, keepdim=True)
    total, count = sums if shared is None else map(shared.summed, sums)
    return total / count.clamp(min=1)


class NystromformerForTokenClassification(Swapped, theirs.NystromformerForTokenClassification):
    shareable = False


class NystromformerForQuestionAnswering(Swapped, theirs.NystromformerForQuestionAnswering):
    shareable = False


class NystromformerForMultipleChoice(Swapped, theirs.NystromformerForMultipleChoice):
    shareable = False


OURS: dict[type[nn.Module], type[nn.Module]] = {
    theirs.NystromformerEmbeddings: Embeddings,
    theirs.NystromformerSelfAttention: SelfAttention,
    theirs.NystromformerModel: NystromformerModel,
}
