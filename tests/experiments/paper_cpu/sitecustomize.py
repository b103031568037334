"""
Makes accelerate shard on the CPU, in every process that has this folder on PYTHONPATH. Python imports it at its start.

accelerate chooses FSDP only on GPUs and trains with DDP on a CPU, without a word. Its sharding itself works on CPU
tensors with gloo: only that choice is changed here, so that the FSDP2 launch files run as they are.
"""

import importlib.abc
import importlib.util
import os
import sys


def patch(state) -> None:
    original = state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == state.DistributedType.MULTI_CPU:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = state.DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = self.distributed_type

    state.AcceleratorState.__init__ = init


class Finder(importlib.abc.MetaPathFinder):
    """Patches accelerate.state once it is imported: importing it here would slow down every process."""

    def find_spec(self, name, path, target=None):
        if name != "accelerate.state":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    sys.meta_path.insert(0, Finder())
