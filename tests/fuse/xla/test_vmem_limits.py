"""What kernels ask for of VMEM: nothing, where they need no more than each operation has."""

from __future__ import annotations

import pytest

from tpu_lowering.fuse.xla.vmem_limits import BLOCKS_IN_LEAST, LEAST, asked, kernel_bytes
from tpu_lowering.ir import chips

CHIPS = [chips.find(name) for name in ("tpu7x", "v6e", "v5e")]


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_a_kernel_asks_for_more_than_it_has_or_for_nothing(chip: chips.Chip) -> None:
    assert asked(BLOCKS_IN_LEAST, chip) is None
    assert asked(LEAST, chip) == 3 * LEAST // 2
    assert asked(chip.vmem_bytes, chip) == kernel_bytes(chip)
