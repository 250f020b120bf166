"""Memory over a program's operations."""

from __future__ import annotations

from tpu_lowering.runtime.aot import hlo
from tpu_lowering.runtime.aot.live import live_bytes

PROGRAM = """HloModule m

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0} add(%a, %a)
  %c = f32[16,128]{1,0} concatenate(%b, %b)
  %d = f32[16,128]{1,0:S(1)} copy(%c)
  %view = f32[2048]{0} bitcast(%c)
  %e = f32[8,128]{1,0} custom-call(%view, %b), custom_call_target="tpu_custom_call", output_to_operand_aliasing={{}: (1, {})}
  ROOT %f = f32[8,128]{1,0} negate(%e)
}
"""
KIB = 1024


def test_what_is_still_needed_counts() -> None:
    assert live_bytes(hlo.Module.of(PROGRAM)) == (
        ("b", 8 * KIB),  # the argument and itself
        ("c", 16 * KIB),
        ("d", 16 * KIB),  # in VMEM
        ("e", 16 * KIB),  # written over b; c is needed through its bitcast
        ("f", 12 * KIB),
    )
