"""Memory that is freed goes back to the system where more was taken than is asked for."""

import pytest
import torch

from moeify.routing.memory import give_back

_BLOCKS, _ELEMENTS = 3000, 25_000  # of 100 kB, which glibc takes from its heap


def own_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("grown", [0, 1 << 20])
def test_freed_memory_between_tensors_goes_back(grown: int) -> None:
    give_back()
    blocks = [torch.ones(_ELEMENTS) for _ in range(_BLOCKS)]
    some = blocks[::2]
    before = own_bytes()
    del blocks
    give_back(1 << 40)  # so much was not taken: nothing happens
    freed = _BLOCKS // 2 * 4 * _ELEMENTS
    assert own_bytes() > before - freed // 4
    give_back(grown)
    assert own_bytes() < before - freed // 2
    assert all(bool((block == 1).all()) for block in some)
