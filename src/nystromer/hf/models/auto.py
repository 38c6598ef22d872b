"""Registers the models with transformers' Auto classes, for the model_type "nystromformer"."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from nystromer.hf.models.configuration import NystromformerConfig
from nystromer.hf.models.nystromformer import (
    NystromformerForMaskedLM,
    NystromformerForMultipleChoice,
    NystromformerForQuestionAnswering,
    NystromformerForSequenceClassification,
    NystromformerForTokenClassification,
    NystromformerModel,
)
from nystromer.hf.models.pretraining import NystromformerForPreTraining

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
