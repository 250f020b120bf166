"""Results that no compiler made."""

from __future__ import annotations

from typing import Any

MIB = 1 << 20
VERSIONS = {"jax": "1.0", "libtpu": "2.0"}


def entry(mib: float, programs: int = 1, **changes: Any) -> dict[str, Any]:
    """An entry of one kernel that moves so many MiB, half of them read."""
    count = int(mib * MIB)
    return {
        "hbm_bytes": count,
        "hbm_bytes_read": count // 2,
        "hbm_bytes_written": count - count // 2,
        "operand_bytes": count,
        "kernels_by_operands": 0,
        "device_operations": programs,
        "opcodes": ["broadcast", "custom-call:tpu_custom_call"][-programs:],
        "programs": programs,
        "peak_bytes": count,
        "vmem": 0,
        "schedule_cycles": None,
        "unscheduled_bytes": count,
        "kernel_cycles": 1000,
        "bandwidth_bound_seconds": count / 1e12,
        "note": "a shape",
        "versions": VERSIONS,
        **changes,
    }


def failure() -> dict[str, Any]:
    return {"error": {"code": "TL601", "text": "[TL601] too much VMEM\n  why  it is"}, "note": "", "versions": VERSIONS}
