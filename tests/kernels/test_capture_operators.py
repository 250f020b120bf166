"""Functional kernels under Helion's own capture (``HELION_TPU_COMPILE_CAPTURE=1``): ``helion_capture`` operators.

The variable is read when Helion is imported, so these run in a process of their own.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

PROGRAM = """
import helion, helion.language as hl, torch, tpu_lowering

@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        out[tile] = x[tile] * factor
    return out

@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def both(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total, difference = torch.empty_like(x), torch.empty_like(x)
    for tile in hl.tile(x.size()):
        total[tile] = x[tile] + y[tile]
        difference[tile] = x[tile] - y[tile]
    return total, difference

names = [name for name in dir(torch.ops.helion_capture) if name.startswith(("scaled", "both"))]
assert len(names) == 2, names

def model(x, y):
    a = torch.ops.helion_capture.scaled_1(x, 3.0)
    b, c = torch.ops.helion_capture.both_2(a, y)
    return a, b, c * 2

x, y = torch.randn(24, 200), torch.randn(24, 200)
results = torch.compile(model, backend="helion_tpu", fullgraph=True, options={"verify": True})(x, y)
for result, expected in zip(results, (x * 3, x * 3 + y, (x * 3 - y) * 2)):
    torch.testing.assert_close(result, expected)
report = tpu_lowering.explain(model, x, y)
print(report.programs_after, report.kernel_calls, len(report.allocations_kept))
"""


def test_capture_operators_are_kernel_calls(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    environment = {**os.environ, "HELION_TPU_COMPILE_CAPTURE": "1"}
    run = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "1 2 0"
