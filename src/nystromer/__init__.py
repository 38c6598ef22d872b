"""Nyström attention (Xiong et al. 2021, arXiv:2102.03902): right, fast, and a true drop-in."""

from nystromer.attention_rows import nystrom_attention_rows
from nystromer.clustered.attention import clustered_attention
from nystromer.clustered.attention_rows import clustered_attention_rows
from nystromer.drop_in.convert import nystromize
from nystromer.functional import nystrom_attention
from nystromer.modules import NystromAttention
from nystromer.varlen import nystrom_attention_varlen

__version__ = "0.1.0"
__all__ = [
    "NystromAttention",
    "clustered_attention",
    "clustered_attention_rows",
    "nystrom_attention",
    "nystrom_attention_rows",
    "nystrom_attention_varlen",
    "nystromize",
]
