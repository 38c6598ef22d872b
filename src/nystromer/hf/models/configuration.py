"""Defines NystromformerConfig: the fields of transformers' config, and four more."""

# No `from __future__ import annotations` here: transformers checks fields against annotations.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.models.nystromformer import configuration_nystromformer as theirs_config

from nystromer.checks import check_kernel_size, check_positive


@strict
class NystromformerConfig(theirs_config.NystromformerConfig):
    """Has the fields of transformers' NystromformerConfig and four more.

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

    # In transformers these two demand attn_implementation="eager", which here is exact attention.
    @property
    def output_attentions(self) -> bool | None:
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None) -> None:
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        """Accepts output_attentions with every implementation: all of them have a map to return."""

    def validate_architecture(self) -> None:
        super().validate_architecture()
        for name in ("num_landmarks", "ngram_size", "ngram_buckets"):
            check_positive(name, getattr(self, name))
        if self.conv_kernel_size is not None:
            check_kernel_size("conv_kernel_size", self.conv_kernel_size)

    @classmethod
    def bert_small(cls, **fields: Any) -> "NystromformerConfig":
        """Returns the paper's BERT-small: 4 layers, and BERT-small's widths, for it gives none."""
        sizes = {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8}
        return cls(**{**sizes, "intermediate_size": 2048, **fields})

    @classmethod
    def bert_base(cls, **fields: Any) -> "NystromformerConfig":
        """Returns the paper's BERT-base: 12 layers of 12 heads of 64, transformers' defaults."""
        return cls(**fields)
