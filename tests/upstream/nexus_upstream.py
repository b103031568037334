"""
Transformers' own common tests, run on Nexus: those in the `tests/*.py` of its source package, which `run.py` fetches.
The folders beside them (generation, exporters, utils) are not in that package; the few names which the common tests
import from there are stood in for, and what they hold is covered by tests of our own.
"""

import sys
import types
import unittest
from unittest import mock

import torch
from transformers.testing_utils import torch_device

from nexus_transformers import NexusConfig, NexusForCausalLM, NexusModel


def stand_in(name: str, **members) -> None:
    module = types.ModuleType(f"transformers_tests.{name}")
    module.__dict__.update(members)
    module.__path__ = []
    sys.modules[module.__name__] = module


COMMON_CONFIG = {"output_hidden_states": True, "chunk_size_feed_forward": 5, "problem_type": "regression"}
DISTRIBUTED = (
    "run_distributed",
    "_get_distributed_backend",
    "_get_distributed_device_type",
    "_get_rank_device",
    "_set_rank_device",
    "_start_rank_processes",
)
stand_in("exporters")
stand_in("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
stand_in("generation")
stand_in("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
stand_in("utils")
stand_in("utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG)
stand_in("distributed_testing_utils", **dict.fromkeys(DISTRIBUTED))

from transformers_tests import test_modeling_common as common  # noqa: E402
from transformers_tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin  # noqa: E402
from transformers_tests.test_training_mixin import TrainingTesterMixin  # noqa: E402

# By these the common tests know a base model and a language model; remote code is in neither.
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "nexus": "NexusModel"}
common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = {**common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "nexus": "NexusForCausalLM"}

FIELDS = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


class Tester:
    """What CausalLMModelTester is to a model of the library."""

    base_model_class = NexusModel
    causal_lm_class = NexusForCausalLM
    batch_size = 13
    seq_length = 7
    is_training = True

    def __init__(self, parent: unittest.TestCase, **nexus):
        self.parent = parent
        self.nexus = nexus
        for name, value in FIELDS.items():
            setattr(self, name, value)
        self.num_hidden_layers = sum(len(calls) for calls in self.get_config().attention_calls())  # attention maps
        self.expected_num_hidden_layers = self.num_layers + 1  # hidden states

    def get_config(self) -> NexusConfig:
        return NexusConfig(**{name: getattr(self, name) for name in FIELDS} | self.nexus)

    def prepare_config_and_inputs_for_common(self):
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids).to(torch_device),
        }


GATED = {"attention_order": 2, "inner_gate": True, "inner_gate_init": 0.5}


class NexusTests(common.ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, TensorParallelTesterMixin):
    all_model_classes = (NexusModel, NexusForCausalLM)
    model_split_percents = [0.5, 0.7, 0.8]
    _torch_compile_train_cls = NexusForCausalLM
    nexus = {}

    def setUp(self):
        self.model_tester = Tester(self, **self.nexus)

    def test_config(self):
        ConfigTester(self, config_class=NexusConfig).run_common_tests()

    def test_num_layers_is_small(self):
        # upstream's limit is on layers; its tester's num_hidden_layers counts our attention calls
        with mock.patch.object(self.model_tester, "num_hidden_layers", self.model_tester.num_layers):
            super().test_num_layers_is_small()


class NexusOrder2Test(NexusTests, unittest.TestCase):
    nexus = {"attention_order": 2}


class NexusOrder3Test(NexusTests, unittest.TestCase):
    nexus = {"attention_order": 3}


class NexusSeparateTest(NexusTests, unittest.TestCase):
    nexus = {"inner_attention": "separate", "refine_value": True} | GATED


class NexusSelfTest(NexusTests, unittest.TestCase):
    nexus = {"inner_attention": "self"} | GATED


del NexusTests  # a base class, not a test
