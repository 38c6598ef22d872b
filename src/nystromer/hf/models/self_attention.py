"""Computes the self-attention of a Nyströmformer layer."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.nystromformer import modeling_nystromformer as theirs

from nystromer.attention_rows import nystrom_attention_rows
from nystromer.backends.eager import convolution
from nystromer.functional import nystrom_attention
from nystromer.hf.masks import key_mask
from nystromer.hf.models.configuration import NystromformerConfig
from nystromer.landmarks import zero_padding

EXACT = ("sdpa", "eager")  # the implementations of transformers that stand for exact attention


class Taps(nn.Conv2d):
    """Holds the weights of a layer's convolution, which `nystrom_attention` computes.

    They are read by a call, for which offloading and sharding bring a module's weights.
    """

    def forward(self) -> Tensor:  # type: ignore[override]
        """Returns the taps, [H, K]."""
        return self.weight[:, 0, :, 0]


class SelfAttention(theirs.NystromformerSelfAttention):
    """Calls `nystrom_attention` between the projections of transformers' layer."""

    config: NystromformerConfig
    conv: Taps
    shared_sequence: Any = None  # a SharedSequence, of nystromer.distributed.sequence_parallel

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
        exact = self.config.exact_attention or self.config._attn_implementation in EXACT
        mask = key_mask(attention_mask, batch)
        options: dict[str, Any] = {
            # landmarks for all tokens are exact attention (Lemma 2)
            "num_landmarks": n if exact else self.config.num_landmarks,
            "mask": mask,
            "pinv_init": "matrix" if self.config.inv_coeff_init_option else "sequence",
        }
        taps = None if self.config.conv_kernel_size is None else self.conv()
        if self.shared_sequence is not None:
            if output_attentions:
                raise ValueError(
                    "output_attentions=True needs whole sequences, got a model whose sequences are "
                    "cut by sequence_parallel; leave it out."
                )
            output = self.shared_sequence.attend(query, key, value, conv_weight=taps, **options)
            return (output.transpose(1, 2).flatten(2),)
        if not output_attentions:
            output = nystrom_attention(query, key, value, conv_weight=taps, **options)
            return (output.transpose(1, 2).flatten(2),)  # [B, N, H D]
        weights = nystrom_attention_rows(query, key, torch.arange(n), **options)
        value = zero_padding(value, mask)
        output = weights @ value  # so that a gradient reaches the weights
        if taps is not None:
            output = zero_padding(output + convolution(value, taps), mask)
        return output.transpose(1, 2).flatten(2), weights
