"""One sequence in many processes: what they exchange does not grow with its length."""

from nystromer.distributed.attention import nystrom_attention
from nystromer.distributed.attention_rows import nystrom_attention_rows
from nystromer.distributed.sequence import SharedSequence, sequence_parallel

__all__ = ["SharedSequence", "nystrom_attention", "nystrom_attention_rows", "sequence_parallel"]
