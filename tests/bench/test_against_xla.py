"""XLA alone against what the estimates make: samples that are made larger, equal programs, and the tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import against_tables, against_xla, opinfo, opinfo_cases
from bench.against_tables import Compared
from tests.bench.made_up import MIB, entry, failure
from tpu_lowering.ir import chips


def test_sizes_of_a_sample_grow_together() -> None:
    sample = opinfo.largest_sample("bmm")
    assert sample is not None and sample.nbytes == 4000
    left, right = opinfo.tensors_of(sample.args)
    assert (left.shape, right.shape) == ((160, 80, 160), (160, 160, 80)) and sample.scale == 16
    assert sample.note() == "float32 [160, 80, 160], float32 [160, 160, 80]"


def test_a_sample_whose_numbers_are_sizes_stays_as_it_is() -> None:
    sample = opinfo.largest_sample("native_layer_norm")
    assert sample is not None and sample.scale == 1


def test_what_depends_on_values_has_no_sample() -> None:
    assert opinfo.largest_sample("masked_select") is None


def test_the_list_of_entries_is_sound() -> None:
    assert len(opinfo_cases.LARGEST) == 50
    assert len(set(opinfo_cases.CASES)) == len(opinfo_cases.CASES)
    assert set(opinfo_cases.CASES) <= set(opinfo.entries())


def test_both_forms_of_what_is_not_fused_are_one_program() -> None:
    capture = against_xla.of_operator("sub", torch.float32)
    digests = {against_xla.digest(capture(chips.find("tpu7x"), fuse)) for fuse in against_xla.FUSE.values()}
    assert len(digests) == 1


def test_a_kernel_is_named_and_moves_fewer_bytes() -> None:
    capture = against_xla.of_operator("renorm", torch.float32)
    alone, fused = (against_xla.run(capture, row, "tpu7x") for row in against_xla.FUSE)
    assert (alone["kernels"], fused["kernels"]) == ([], ["linalg_vector_norm_rows"])
    assert alone["same_as"] != fused["same_as"] and fused["hbm_bytes"] < alone["hbm_bytes"]


def results() -> dict[str, dict[str, Any]]:
    """Three cases on one chip: a kernel that moves less, one that moves more, and none; and one that failed."""
    found: dict[str, dict[str, Any]] = {}
    for name, alone, fused, kernels in (("add", 8, 8, []), ("softmax", 8, 4, ["a"]), ("var", 8, 10, ["b"])):
        found[f"opinfo/{name}/xla/tpu7x"] = entry(alone, kernels=[], same_as="x")
        found[f"opinfo/{name}/fused/tpu7x"] = entry(fused, kernels=kernels, same_as="y" if kernels else "x")
    found["opinfo/mul/xla/tpu7x"] = failure()
    return found


def test_cases_with_kernels_are_listed_and_all_are_counted() -> None:
    entries = results()
    assert against_tables.cases_of(entries, "opinfo") == ["softmax", "var", "add", "mul"]
    text = against_tables.opinfo_section(entries)
    assert (
        "- tpu7x, 3 in all: 2 with kernels, 1 the same program; the largest ratio is 1.25 (var), above 1.00: var.\n"
        in text
    )
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == [["softmax", "8", "4", "0.50"], ["var", "8", "10", "1.25"]]


def test_forms_compare_by_one_source() -> None:
    entries = results()
    entries["opinfo/var/fused/tpu7x"] |= {"kernels_by_operands": 1, "operand_bytes": 6 * MIB}
    found = Compared.of(entries, "opinfo", "var", "tpu7x")
    assert found is not None and (found.alone, found.fused) == (8 * MIB, 6 * MIB)


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_training_has_a_forward_and_a_backward(name: str) -> None:
    captured = against_xla.of_zoo(name, True)(chips.find("tpu7x"), "never")
    assert len(captured) == 2 and not against_xla.generated(captured[0])
