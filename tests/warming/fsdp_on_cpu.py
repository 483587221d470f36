"""moeify with FSDP on CPUs, for tests: ``accelerate launch --use_fsdp fsdp_on_cpu.py warmup ...``.

accelerate leaves FSDP out where processes are of the kind ``MULTI_CPU``, though torch shards on
CPUs as on GPUs. Here they say that they are of the other kind; all that follows is accelerate's,
torch's and moeify's own.
"""

from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from moeify.__main__ import main

_started = PartialState.__init__


def _start(self: PartialState, *args: Any, **options: Any) -> None:
    _started(self, *args, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


PartialState.__init__ = _start

if __name__ == "__main__":
    main()
