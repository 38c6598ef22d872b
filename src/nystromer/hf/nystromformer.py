"""The Nyströmformer models of transformers with this package's attention: the import is swapped,
names of parameters and config fields stay.

Nothing is copied: transformers builds its model, then the classes in `OURS` take the place of its.
"""

# No `from __future__ import annotations` here: the config checks its fields against annotations.
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.albert.modeling_albert import AlbertForPreTrainingOutput
from transformers.models.nystromformer import configuration_nystromformer as theirs_config
from transformers.models.nystromformer import modeling_nystromformer as theirs
from transformers.utils.generic import can_return_tuple

from nystromer.checks import check_positive
from nystromer.functional import nystrom_attention
from nystromer.hf.attention import NAME
from nystromer.hf.masks import key_mask
from nystromer.hf.positions import refuse_longer_inputs
from nystromer.rows import nystrom_attention_rows


@strict
class NystromformerConfig(theirs_config.NystromformerConfig):
    """transformers' NystromformerConfig and four fields more.

    Args:
        ngram_size, ngram_buckets: With a size of n > 1 a token's embedding is the sum of its own
            and of those of the 2 to n tokens that end with it, each found by its hash in a table
            of so many rows (Pagnoni et al. 2024, arXiv:2412.09871, section 3.2.1): what bytes need
            to be words. transformers' classes do not read such a model.
        classifier_pooling: What NystromformerForSequenceClassification judges a text by: "cls", its
            first token, as transformers does, or "mean", the mean of its tokens (as ModernBERT's
            config calls them).
        exact_attention: Softmax attention over all pairs, plus the convolution: what transformers
            computes where num_landmarks equals segment_means_seq_len, as it does in the published
            configs. Otherwise sequences of more than num_landmarks tokens get Nyström attention.
        conv_kernel_size: Odd, or None for no convolution.
        inv_coeff_init_option: True starts the inverse from each head's own norms, False (the
            published weights) from the largest over a sequence's heads.
        segment_means_seq_len, attention_probs_dropout_prob: Kept for transformers and not used:
            any length is fine, and no implementation ever applied this dropout.
    """

    conv_kernel_size: int | None = 65  # type: ignore[assignment]  # None is refused by theirs
    exact_attention: bool = False
    classifier_pooling: Literal["cls", "mean"] = "cls"
    ngram_size: int = 1
    ngram_buckets: int = 16_384

    def validate_architecture(self) -> None:
        super().validate_architecture()
        for name in ("num_landmarks", "ngram_size", "ngram_buckets"):
            check_positive(name, getattr(self, name))
        if self.conv_kernel_size is not None:
            check_positive("conv_kernel_size", self.conv_kernel_size)
            if self.conv_kernel_size % 2 == 0:
                raise ValueError(
                    f"`conv_kernel_size` must be odd, got {self.conv_kernel_size}; an odd kernel "
                    "stays centred on its token."
                )

    @classmethod
    def bert_small(cls, **fields: Any) -> "NystromformerConfig":
        """The paper's BERT-small: 4 layers (it gives no widths; these are those of BERT-small)."""
        sizes = {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8}
        return cls(**{**sizes, "intermediate_size": 2048, **fields})

    @classmethod
    def bert_base(cls, **fields: Any) -> "NystromformerConfig":
        """The paper's BERT-base: 12 layers, 12 heads of 64; transformers' defaults."""
        return cls(**fields)


class NgramEmbedding(nn.Embedding):
    """The sum of the embeddings of the n-grams that end at each token, n from 2 to `ngram_size`."""

    PRIME, FACTOR = 2**31 - 1, 1_000_003  # of the rolling hash

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__((config.ngram_size - 1) * config.ngram_buckets, config.hidden_size)
        self.config = config

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens [B, N] -> [B, N, E]. Before the first token stands padding."""
        length, buckets = ids.shape[1], self.config.ngram_buckets
        earlier = F.pad(ids, (self.config.ngram_size - 1, 0), value=self.config.pad_token_id)
        hashes, total = ids, torch.zeros((), device=ids.device)
        for n in range(2, self.config.ngram_size + 1):
            first = earlier[:, self.config.ngram_size - n :][:, :length]
            hashes = (hashes + first * pow(self.FACTOR, n - 1, self.PRIME)) % self.PRIME
            rows = (hashes * 40_503 + (hashes >> 15)) % buckets
            total = total + super().forward(rows + (n - 2) * buckets)
        return total


class Embeddings(theirs.NystromformerEmbeddings):
    """transformers' embeddings with n-grams of tokens, if the config has them."""

    ngram_embeddings: NgramEmbedding | None

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None and input_ids is not None and self.ngram_embeddings is not None:
            inputs_embeds = self.word_embeddings(input_ids) + self.ngram_embeddings(input_ids)
        return super().forward(input_ids, token_type_ids, position_ids, inputs_embeds)


class SelfAttention(theirs.NystromformerSelfAttention):
    """transformers' projections around `nystrom_attention`."""

    config: NystromformerConfig

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        heads = (self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            projection(hidden_states).unflatten(2, heads).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        batch, n, _ = hidden_states.shape
        options: dict[str, Any] = {
            # landmarks for all tokens are exact attention (Lemma 2)
            "num_landmarks": n if self.config.exact_attention else self.config.num_landmarks,
            "mask": key_mask(attention_mask, batch),
            "pinv_init": "matrix" if self.config.inv_coeff_init_option else "sequence",
        }
        taps = None if self.config.conv_kernel_size is None else self.conv.weight[:, 0, :, 0]
        output = nystrom_attention(query, key, value, conv_weight=taps, **options)
        output = output.transpose(1, 2).flatten(2)  # [B, N, H D]
        if not output_attentions:
            return (output,)
        return output, nystrom_attention_rows(query, key, torch.arange(n), **options)


class Swapped(PreTrainedModel):
    """Put before a class of transformers: builds its model, then swaps the parts in `OURS`."""

    config_class = NystromformerConfig
    # Their losses are means, but **kwargs makes Trainer take them for parts of a sum: it would add
    # up the gradients of accumulated batches and processes.
    accepts_loss_kwargs = False

    def __init__(self, config: NystromformerConfig) -> None:
        if not isinstance(config, NystromformerConfig):
            config = NystromformerConfig.from_dict(config.to_dict())
        option = config.inv_coeff_init_option
        config.inv_coeff_init_option = False  # transformers' own layer fails with True
        super().__init__(config)
        config.inv_coeff_init_option = option
        for module in self.modules():
            if type(module) in OURS:
                module.__class__ = OURS[type(module)]
            if isinstance(module, SelfAttention):
                module.config = config
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

    def get_correct_attn_implementation(self, *args: Any, **kwargs: Any) -> str:
        return NAME  # for its masks: [B, N], where "eager" makes [B, 1, N, N]


class NystromformerModel(Swapped, theirs.NystromformerModel):
    pass


class NystromformerForMaskedLM(Swapped, theirs.NystromformerForMaskedLM):
    pass


class NystromformerForSequenceClassification(
    Swapped, theirs.NystromformerForSequenceClassification
):
    """With `classifier_pooling`, a field of the config."""

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
        states = outputs.last_hidden_state  # [B, N, E]
        if self.config.classifier_pooling == "mean":
            states = mean_of_tokens(states, attention_mask)
        logits = self.classifier(states)  # of the first
        return SequenceClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def mean_of_tokens(states: Tensor, mask: Tensor | None) -> Tensor:
    """Of the real ones: [B, N, E], any mask that the model takes -> [B, 1, E]."""
    if mask is None:
        return states.mean(1, keepdim=True)
    real: Any = mask.bool() if mask.dim() == 2 else key_mask(mask, len(states))
    weights = real.unsqueeze(2).to(states.dtype)
    return (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)


class NystromformerForTokenClassification(Swapped, theirs.NystromformerForTokenClassification):
    pass


class NystromformerForQuestionAnswering(Swapped, theirs.NystromformerForQuestionAnswering):
    pass


class NystromformerForMultipleChoice(Swapped, theirs.NystromformerForMultipleChoice):
    pass


class NystromformerForPreTraining(NystromformerForMaskedLM):
    """Masked language model and sentence order, the paper's pre-training. transformers has no such
    class; its NystromformerForMaskedLM reads what this one saves, and the other way round."""

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
        """labels [B, N], -100 where nothing is asked; sentence_order_label [B], 1 if the two
        segments were swapped. The loss is the sum of the two mean cross entropies.

        With only_asked words are predicted where labels ask and nowhere else, for a fraction of the
        cost: prediction_logits is [asked, V]. num_items_in_batch is what Trainer passes, the words
        asked in all batches of an update: the loss is this batch's part of the update's."""
        kwargs["return_dict"] = True
        outputs = self.nystromformer(input_ids, attention_mask=attention_mask, **kwargs)
        states = outputs.last_hidden_state  # [B, N, E]
        order = self.sentence_order(self.dropout(torch.tanh(self.pooler(states[:, 0]))))
        losses = []
        share: Tensor | float = 1.0
        if labels is not None:
            asked = labels != -100
            if only_asked:
                states, labels = states[asked], labels[asked]
            words = self.cls(states)
            total = F.cross_entropy(words.flatten(0, -2), labels.flatten(), reduction="sum")
            losses.append(total / asked.sum().clamp(min=1))
            if num_items_in_batch is not None:
                share = asked.sum() / num_items_in_batch
        else:
            words = self.cls(states)
        if sentence_order_label is not None:
            losses.append(F.cross_entropy(order, sentence_order_label))
        return AlbertForPreTrainingOutput(
            loss=share * sum(losses[1:], losses[0]) if losses else None,
            prediction_logits=words,
            sop_logits=order,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


OURS: dict[type[nn.Module], type[nn.Module]] = {
    theirs.NystromformerEmbeddings: Embeddings,
    theirs.NystromformerSelfAttention: SelfAttention,
    theirs.NystromformerModel: NystromformerModel,
}

# From here on the Auto classes take ours for every folder of model_type "nystromformer".
AutoConfig.register("nystromformer", NystromformerConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, NystromformerModel),
    (AutoModelForPreTraining, NystromformerForPreTraining),
    (AutoModelForMaskedLM, NystromformerForMaskedLM),
    (AutoModelForSequenceClassification, NystromformerForSequenceClassification),
    (AutoModelForTokenClassification, NystromformerForTokenClassification),
    (AutoModelForQuestionAnswering, NystromformerForQuestionAnswering),
    (AutoModelForMultipleChoice, NystromformerForMultipleChoice),
):
    auto_class.register(NystromformerConfig, model_class, exist_ok=True)
