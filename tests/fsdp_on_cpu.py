"""`kgl train` with FSDP on CPUs: torch shards there, and accelerate would, if it did not know only GPUs for it."""

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from kgl.cli.train import main
from kgl.training import sharding


_init = AcceleratorState.__init__


def _init_with_fsdp(
    self: AcceleratorState, *args: Any, fsdp_plugin: FullyShardedDataParallelPlugin | None = None, **kwargs: Any
) -> None:
    """Do for processes on CPUs what `AcceleratorState` does for those on GPUs."""
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = _init_with_fsdp
    sharding.shards_on = lambda device: True
    main(sys.argv[1:])
