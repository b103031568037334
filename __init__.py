"""Nexus: higher-order attention (arXiv 2512.03377) as a Hugging Face Transformers model."""

from . import interrupt  # noqa: F401  # isort: skip  # first: what follows takes seconds

import transformers

from . import modeling_nexus
from .configuration_nexus import AUTO_MAP, NexusConfig
from .gate_callback import GateCallback
from .modeling_nexus import (
    NexusForCausalLM,
    NexusForMaskedLM,
    NexusForQuestionAnswering,
    NexusForSequenceClassification,
    NexusForTokenClassification,
    NexusModel,
    NexusPreTrainedModel,
)

# Register with the Auto classes, and let `save_pretrained` carry the code, so that what it writes loads anywhere.
transformers.AutoConfig.register("nexus", NexusConfig, exist_ok=True)
NexusConfig.register_for_auto_class()
for _auto_class, _reference in AUTO_MAP.items():
    if _auto_class != "AutoConfig":
        _model_class = getattr(modeling_nexus, _reference.split(".")[-1])
        getattr(transformers, _auto_class).register(NexusConfig, _model_class, exist_ok=True)
        _model_class.register_for_auto_class(_auto_class)

# With PEFT installed, its methods have the same default targets as for Llama. PEFT has no way to register them but its
# tables; importing them costs 0.13 s after the 3.4 s of Transformers.
try:
    from peft.utils import constants as _peft_constants
except ImportError:
    pass
else:
    for _name, _targets in vars(_peft_constants).items():
        if _name.startswith("TRANSFORMERS_MODELS_TO_") and "llama" in _targets:
            _targets.setdefault("nexus", _targets["llama"])

__all__ = [
    "GateCallback",
    "NexusConfig",
    "NexusForCausalLM",
    "NexusForMaskedLM",
    "NexusForQuestionAnswering",
    "NexusForSequenceClassification",
    "NexusForTokenClassification",
    "NexusModel",
    "NexusPreTrainedModel",
]
