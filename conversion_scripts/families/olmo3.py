"""OLMo 3: OLMo 2 with windows in most layers, and another rotary embedding there."""

from .olmo2 import RULES as OLMO2
from .rules import WINDOWS_WITH_ROPE, without

MODEL_TYPE = "olmo3"

RULES = {
    **OLMO2,
    "models": "OLMo 3",
    "config": without(OLMO2["config"], "rope_parameters"),
    "computed": WINDOWS_WITH_ROPE,
}
