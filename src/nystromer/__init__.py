"""Nyström attention (Xiong et al. 2021, arXiv:2102.03902): right, fast, and a true drop-in."""

from nystromer.clustered.attention import clustered_attention as clustered_attention
from nystromer.clustered.rows import clustered_attention_rows as clustered_attention_rows
from nystromer.functional import nystrom_attention as nystrom_attention
from nystromer.modules import NystromAttention as NystromAttention
from nystromer.rows import nystrom_attention_rows as nystrom_attention_rows
from nystromer.varlen import nystrom_attention_varlen as nystrom_attention_varlen

__version__ = "0.1.0"
__all__ = [
    "NystromAttention",
    "clustered_attention",
    "clustered_attention_rows",
    "nystrom_attention",
    "nystrom_attention_rows",
    "nystrom_attention_varlen",
]
