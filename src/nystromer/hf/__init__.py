"""Hugging Face transformers: Nyström attention in models that exist, and the Nyströmformer models.

Importing it registers "nystrom" with transformers, for attention and for masks, and gives the
Nyströmformer models to the Auto classes.
"""

try:
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "transformers":
        raise
    raise ImportError("nystromer.hf needs transformers: pip install nystromer[hf].") from _error

from nystromer.hf.calibration.calibrate import calibrate
from nystromer.hf.conversion.interface import nystrom_attention_forward
from nystromer.hf.conversion.layers import attention_layers, intercepted
from nystromer.hf.conversion.nystromize import nystromize
from nystromer.hf.conversion.plan import LayerChoice, Plan
from nystromer.hf.conversion.restore import plan_of
from nystromer.hf.models import auto as _auto  # noqa: F401  # registers the models
from nystromer.hf.models.configuration import NystromformerConfig
from nystromer.hf.models.nystromformer import (
    NystromformerForMaskedLM,
    NystromformerForMultipleChoice,
    NystromformerForQuestionAnswering,
    NystromformerForSequenceClassification,
    NystromformerForTokenClassification,
    NystromformerModel,
)
from nystromer.hf.models.original_checkpoints import load_original
from nystromer.hf.models.pretraining import NystromformerForPreTraining
from nystromer.hf.positions import resize_positions

__all__ = [
    "LayerChoice",
    "NystromformerConfig",
    "NystromformerForMaskedLM",
    "NystromformerForMultipleChoice",
    "NystromformerForPreTraining",
    "NystromformerForQuestionAnswering",
    "NystromformerForSequenceClassification",
    "NystromformerForTokenClassification",
    "NystromformerModel",
    "Plan",
    "attention_layers",
    "calibrate",
    "intercepted",
    "load_original",
    "nystrom_attention_forward",
    "nystromize",
    "plan_of",
    "resize_positions",
]
