"""Reading the compiler's texts: HLO of the entry computation, and the dumped DMA schedule."""

from __future__ import annotations

import pathlib

import pytest

from tpu_lowering.runtime.aot import hlo, schedule
from tpu_lowering.runtime.aot.traffic import Traffic, traffic_by_operands

HLO = """\
HloModule jit_f, is_scheduled=true

%fused_update (param_0: f32[64,128], param_1: f32[1,128], param_2: s32[]) -> f32[64,128] {
  %param_0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %param_1 = f32[1,128]{1,0:T(8,128)} parameter(1)
  %param_2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %update = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%param_0, %param_1, %param_2, %zero)
}

ENTRY %main (x: f32[64,128], c: f32[64,128], v: f32[1,128], i: s32[]) -> (f32[64,128], f32[64,128]) {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %c = f32[64,128]{1,0:T(8,128)} parameter(1)
  %v = f32[1,128]{1,0:T(1,128)} parameter(2)
  %i = s32[]{:T(128)} parameter(3)
  %x.vmem = f32[64,128]{1,0:T(8,128)S(1)} copy(%x)
  %empty.1 = f32[64,128]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %exp_into.1 = f32[64,128]{1,0:T(8,128)} custom-call(%x.vmem, %empty.1), custom_call_target="tpu_custom_call", \
output_to_operand_aliasing={{}: (1, {})}, metadata={op_name="jit(f)/model.py:8/exp_into"}, backend_config=\
{"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"4096"}],\
"bundle_analysis_data":{"estimated_cycles":"77","flops":"0"}}
  %updated = f32[64,128]{1,0:T(8,128)} fusion(%c, %v, %i), kind=kLoop, calls=%fused_update
  ROOT %tuple = (f32[64,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) tuple(%exp_into.1, %updated)
}
"""
WHOLE, ROW = 64 * 128 * 4, 128 * 4


def test_entry_operations_in_schedule_order() -> None:
    operations = hlo.Module.of(HLO).entry
    assert [o.opcode for o in operations if o.moves_bytes] == ["copy", "custom-call:tpu_custom_call", "fusion"]
    (kernel,) = (o for o in operations if o.is_kernel)
    assert (kernel.vmem_bytes, kernel.estimated_cycles, kernel.aliased) == (4096, 77, (1,))
    assert kernel.op_name == "jit(f)/model.py:8/exp_into"


def test_traffic_counts_what_lives_in_hbm_and_aliases_once() -> None:
    traffic = traffic_by_operands(hlo.Module.of(HLO))
    assert traffic["x.vmem"] == Traffic(WHOLE, 0)  # into VMEM
    assert traffic["exp_into.1"] == Traffic(0, WHOLE)  # reads VMEM, writes the aliased buffer
    assert "empty.1" not in traffic


def test_an_update_in_place_counts_its_slice() -> None:
    traffic = traffic_by_operands(hlo.Module.of(HLO))
    assert traffic["updated"] == Traffic(ROW + 4, ROW)  # the row, and the index


BROKEN = """\
HloModule jit_f, is_scheduled=true

%fused_kernel (p.0: f32[64,128]) -> f32[64,128] {
  %p.0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %two = f32[64,128]{1,0:T(8,128)} add(%p.0, %p.0)
  ROOT %inner = f32[64,128]{1,0:T(8,128)} custom-call(%two), custom_call_target="tpu_custom_call", backend_config={
  "custom_call_config": {"body": "}
}"}
}
}

ENTRY %main (x: f32[64,128]) -> f32[64,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %first = f32[64,128]{1,0:T(8,128)} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)
  %not_an_operation = f32[1]{0} add(%x, %x)
}"}, backend_config={
  "used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"4096"}]
}
  %second = f32[64,128]{1,0:T(8,128)} fusion(%first), kind=kCustom, calls=%fused_kernel
  ROOT %third = f32[64,128]{1,0:T(8,128)} copy(%second)
}
"""


def test_an_operation_goes_on_over_line_breaks() -> None:
    operations = hlo.Module.of(BROKEN).entry
    assert [operation.name for operation in operations] == ["x", "first", "second", "third"]
    assert operations[1].vmem_bytes == 4096


def test_a_kernel_that_is_fused_with_its_producer_is_a_kernel() -> None:
    operations = hlo.Module.of(BROKEN).entry
    assert [operation.is_kernel for operation in operations] == [False, True, True, False]
    traffic = traffic_by_operands(hlo.Module.of(BROKEN))
    assert traffic["second"] == Traffic(WHOLE, WHOLE)


OFFLOADED = """\
HloModule jit_f, is_scheduled=true

%fused (table: f32[1000,128], rows: s32[16]) -> f32[16,128] {
  %table = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %rows = s32[16]{0:T(128)} parameter(1)
  ROOT %gather = f32[16,128]{1,0:T(8,128)} gather(%table, %rows), offset_dims={1}
}, execution_thread="sparsecore"

%offloaded (table.1: f32[1000,128], rows.1: s32[16]) -> f32[16,128] {
  %table.1 = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %rows.1 = s32[16]{0:T(128)} parameter(1)
  ROOT %taken = f32[16,128]{1,0:T(8,128)} fusion(%table.1, %rows.1), kind=kCustom, calls=%fused
}, execution_thread="sparsecore"

ENTRY %main (t: f32[1000,128], r: s32[16]) -> f32[16,128] {
  %t = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %r = s32[16]{0:T(128)} parameter(1)
  %start = ((), (), (s32[16384]{0:T(1024)}, s32[25]{0:S(11)})) async-start(), calls=%offloaded
  %update = ((f32[1000,128]{1,0:T(8,128)}, s32[16]{0:T(128)}), f32[16,128]{1,0:T(8,128)}, (s32[16384]{0:T(1024)})) \
async-update(%start, %t, %r)
  ROOT %done = f32[16,128]{1,0:T(8,128)} async-done(%update)
}
"""


def test_a_gather_on_the_sparse_core_counts_the_rows_it_takes() -> None:
    traffic = traffic_by_operands(hlo.Module.of(OFFLOADED))
    assert traffic == {"update": Traffic(16 * ROW + 16 * 4, 16 * ROW)}


def test_a_text_without_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an HLO module with an ENTRY computation, got none"):
        hlo.Module.of("HloModule empty\n")


DUMP = """\
0x3: bundle slots:
  %70 = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s38_s29, /*size_in_granules=*/128, /*vmem=*/%s43_s3
  %71 = dma.done.wait %s225_s4, 128 /* pipeline-emitter-dma-wait */
0x4: bundle slots:
  %80 = dma.vmem_to_hbm [thread:$0]  /*vmem=*/%s38_s29, /*size_in_granules=*/64, /*hbm=*/%s43_s3
  %81 = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s38_s29, /*size_in_granules=*/128, /*vmem=*/%s43_s3
"""


def test_dma_bytes_are_summed_by_direction(tmp_path: pathlib.Path) -> None:
    (tmp_path / "exp_into.1_bundles.txt").write_text(DUMP)
    (tmp_path / "exp_into.1_TPU7x_static_llo_profile.textproto").write_text(
        "hlo_op_estimate {\n  estimated_cycles: 250\n}\n"
    )
    found = schedule.read_schedule(tmp_path)
    assert found.cycles == {"exp_into.1": 250}
    assert found.dma == {"exp_into.1": Traffic(256 * 32, 64 * 32)}
    assert schedule.read_schedule(tmp_path, whole=False) == schedule.ScheduleDump({"exp_into.1": 250}, {})


def test_a_copy_of_unknown_size_makes_no_figure(tmp_path: pathlib.Path) -> None:
    (tmp_path / "k_bundles.txt").write_text(DUMP + "  %90 = dma.hbm_to_vmem /*size_in_granules=*/%s9, /*vmem=*/%s1\n")
    assert schedule.read_schedule(tmp_path).dma == {}
