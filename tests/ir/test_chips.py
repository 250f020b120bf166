"""A chip is found by every name it has, holds what JAX's table says of it, and is not taken for another."""

from __future__ import annotations

import dataclasses

import pytest
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering import compat, errors
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import CHIPS, CPU, LANES, SUBLANES, Chip

EVERY = ", ".join(chip.name for chip in CHIPS)
NAMES = {
    "v4": ("v4", "V4", "TPU v4", "tpu-v4", "v4-8", "tpu-v4-podslice", "ct4p"),
    "v5e": ("v5e", "TPU v5e", "tpu_v5e", "TPU v5 lite", "TPU v5 Lite", "v5litepod-4", "v5e-8", "tpu-v5-lite-podslice"),
    "v5p": ("v5p", "TPU v5p", "TPU v5", "v5", "v5p-8", "tpu-v5p-slice", "ct5p"),
    "v6e": ("v6e", "TPU v6e", "TPU v6 lite", "v6e-1", "trillium", "Trillium", "tpu-v6e-slice"),
    "tpu7x": ("tpu7x", "TPU7x", "tpu-7x", "v7x", "TPU v7x", "TPU v7", "tpu7x-4", "ironwood", "Ironwood"),
}


def test_every_chip_has_names_here() -> None:
    assert list(NAMES) == [chip.name for chip in CHIPS]


@pytest.mark.parametrize(("chip", "name"), [(chip, name) for chip, names in NAMES.items() for name in names])
def test_a_chip_is_found_by_any_of_its_names(chip: str, name: str) -> None:
    assert chips.find(name).name == chip
    assert chips.find(name) is chips.find(chip)


@pytest.mark.skipif(not hasattr(pltpu, "get_tpu_info"), reason="JAX 0.7 has no table of TPUs to compare with")
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_figures_are_those_of_jax_in_every_spelling(chip: Chip) -> None:
    for kind in chip.device_kinds:
        assert chips.of_device(kind, "JAX") is chip
        with compat.chip_scope(kind):
            info = pltpu.get_tpu_info()
        assert (info.vmem_capacity_bytes, info.smem_capacity_bytes) == (chip.vmem_bytes, chip.smem_bytes)
        assert info.mem_bw_bytes_per_second == chip.hbm_bytes_per_second
        assert (info.bf16_ops_per_second, info.mxu_column_size) == (chip.bf16_ops_per_second, chip.mxu_size)
        assert (info.num_lanes, info.num_sublanes) == (LANES, SUBLANES)


def test_a_topology_is_its_chip_on_another_slice() -> None:
    for name in ("v5e:2x4", "TPU v5 lite:2x4", "v5litepod:2x4"):
        found = chips.find(name)
        assert (found.name, found.topology) == ("v5e", "v5e:2x4")
    assert chips.find("ironwood:2x2x2").topology == "tpu7x:2x2x2"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v6", "v6e"),
        ("v5lit", "v5e"),
        ("tpu8x", "tpu7x"),
        ("trilium", "v6e"),
        ("ironwod", "tpu7x"),
        ("v5e:2", "v5e:2x2"),
        ("v5e:", "v5e:2x2"),
        ("v99:2x2", "tpu7x"),
        ("cpu", "v5p"),
        ("", "tpu7x"),
        (3, "tpu7x"),
        (None, "tpu7x"),
    ],
)
def test_what_is_no_chip_is_refused_with_the_nearest(name: object, nearest: str) -> None:
    with pytest.raises(errors.TpuLoweringError) as caught:
        chips.find(name)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        f"[TL107] unknown target: {name!r}\n"
        f"  why  expected one of {EVERY}, or a topology such as 'v5e:2x4', got {name!r}\n"
        f'  fix  write target="{nearest}"'
    )


def test_a_device_that_is_no_known_chip_has_no_runtime() -> None:
    with pytest.raises(errors.TpuLoweringError) as caught:
        chips.of_device("TPU v2", "JAX")
    assert str(caught.value) == (
        "[TL104] device has no runtime: JAX on TPU v2\n"
        f"  why  expected this machine to have one of {EVERY}, got TPU v2\n"
        "  fix  run it on a machine that has one; without one, compile it with tpu_lowering.aot_compile"
    )


def test_the_cpu_is_no_tpu_and_stands_in_for_one() -> None:
    tpu7x = chips.find("tpu7x")
    assert not CPU.is_tpu and all(chip.is_tpu for chip in CHIPS)
    assert tpu7x != CPU and CPU.vmem_bytes == tpu7x.vmem_bytes
    assert CPU.device_kind == "TPU7x"


def test_clocks_come_from_operations_and_matrix_units() -> None:
    assert round(chips.find("tpu7x").cycles_per_second / 1e9, 2) == 2.2
    assert round(chips.find("v6e").cycles_per_second / 1e9, 2) == 1.75


def test_a_name_belongs_to_one_chip() -> None:
    newest = dataclasses.replace(CHIPS[-1], name="v8", device_kinds=("TPU v8",), other_names=("tpu-V7X",))
    with pytest.raises(ValueError, match=r"^expected 'tpu-V7X' to be a name of one chip, got tpu7x and v8$"):
        chips.by_key((*CHIPS, newest))


def test_two_spellings_of_a_chip_are_one_name() -> None:
    twice = dataclasses.replace(CHIPS[0], other_names=("V4", "tpu-v4"))
    assert chips.by_key([twice])["v4"] is twice


def test_a_device_of_two_cores_has_the_bandwidth_of_both() -> None:
    """libtpu's device of a v5p is a chip; JAX's figures are for one core of it."""
    assert {chip.name: chip.device_bytes_per_second / chip.hbm_bytes_per_second for chip in CHIPS} == {
        "v4": 1, "v5e": 1, "v5p": 2, "v6e": 1, "tpu7x": 1,
    }  # fmt: skip
