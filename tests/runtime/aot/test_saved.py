"""A training forward, compiled for a chip: it gives what it computes, and no parameter or copy of one."""

from __future__ import annotations

import functools

import pytest
import torch

from tpu_lowering import aot
from tpu_lowering.backend import helion_tpu
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot.capture import TpuRuntime

pytest.importorskip("libtpu")


def test_a_training_forward_gives_no_parameter_back() -> None:
    target = chips.find("v5e")
    runtime = TpuRuntime(target)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Tanh(), torch.nn.Linear(512, 256))
    x = torch.randn(128, 256, requires_grad=True)
    torch._dynamo.reset()
    backend = functools.partial(helion_tpu, options={"fuse": "never"}, runtime=runtime)
    y = torch.compile(model, backend=backend, fullgraph=True)(x)
    saved = {tensor.data_ptr() for tensor in y.grad_fn.saved_tensors}
    assert saved >= {model[0].weight.data_ptr(), model[2].weight.data_ptr(), x.data_ptr()}
    program = aot.compile_captured(runtime.captured[0], target, donate=True, simulate=False)
    computed = 4 * 128 * (512 + 256)  # what tanh gave, and the result; a weight has 512 KiB
    assert computed <= program.output_bytes < computed + 1024  # with a table of where they are
    assert program.hbm_bytes_written <= computed
