"""Hugging Face transformers: Nyström attention in models that exist, and the Nyströmformer models.

Importing it registers "nystrom" with transformers, for attention and for masks.
"""

try:
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "transformers":
        raise
    raise ImportError("nystromer.hf needs transformers: pip install nystromer[hf].") from _error

from nystromer.hf.attention import nystrom_attention_forward as nystrom_attention_forward
from nystromer.hf.calibrate import calibrate as calibrate
from nystromer.hf.checkpoints import load_original as load_original
from nystromer.hf.convert import nystromize as nystromize
from nystromer.hf.layers import attention_layers as attention_layers
from nystromer.hf.layers import intercepted as intercepted
from nystromer.hf.nystromformer import NystromformerConfig as NystromformerConfig
from nystromer.hf.nystromformer import NystromformerForMaskedLM as NystromformerForMaskedLM
from nystromer.hf.nystromformer import (
    NystromformerForMultipleChoice as NystromformerForMultipleChoice,
)
from nystromer.hf.nystromformer import NystromformerForPreTraining as NystromformerForPreTraining
from nystromer.hf.nystromformer import (
    NystromformerForQuestionAnswering as NystromformerForQuestionAnswering,
)
from nystromer.hf.nystromformer import (
    NystromformerForSequenceClassification as NystromformerForSequenceClassification,
)
from nystromer.hf.nystromformer import (
    NystromformerForTokenClassification as NystromformerForTokenClassification,
)
from nystromer.hf.nystromformer import NystromformerModel as NystromformerModel
from nystromer.hf.plan import LayerChoice as LayerChoice
from nystromer.hf.plan import Plan as Plan
from nystromer.hf.positions import resize_positions as resize_positions
from nystromer.hf.restore import plan_of as plan_of
