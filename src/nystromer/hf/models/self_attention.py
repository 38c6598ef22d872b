"""The self-attention of a Nyströmformer layer."""

from typing import Any

import torch
from torch import Tensor
from transformers.models.nystromformer import modeling_nystromformer as theirs

from nystromer.attention_rows import nystrom_attention_rows
from nystromer.functional import nystrom_attention
from nystromer.hf.masks import key_mask
from nystromer.hf.models.configuration import NystromformerConfig


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
