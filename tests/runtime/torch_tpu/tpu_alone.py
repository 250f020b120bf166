"""Programs in processes of their own that have torch_tpu's device, though the machine has no TPU.

torch_tpu makes its device when it finds a TPU among the PCI devices. Here it is told to, and asked for the chip it
answers "TPU v7". It then takes tensors and operations as it would with a TPU, and records them; libtpu is started, and
the process stopped, when it would compute the first one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

from tests.backend.alone import ROOT

# What libtpu asks the machine that it runs on, answered.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}

DEVICE = """
import os, sys, json
import torch
import torch_tpu._loader
from torch_tpu._internal.execution_mode import execution_mode_impl as modes
from torch_tpu._internal.pallas import tpu_torch_pallas
from torch_tpu._internal.utils import hardware

hardware.get_tpu_device_name = lambda: "TPU v7"
torch_tpu._loader._init_device("tpu")

import tpu_lowering
from tpu_lowering import errors
from tpu_lowering.kernels import tpu_tensors
from tpu_lowering.runtime import torch_tpu as runtime

def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="tpu")

launches = []  # name, key and donated positions of every launch
real_launch = tpu_torch_pallas.call_custom_kernel

def launch(name, key, *, inputs, output_shapes, donate_argnums):
    launches.append((name, key, list(donate_argnums), [tuple(t.shape) for t in inputs]))
    return real_launch(name, key, inputs=inputs, output_shapes=output_shapes, donate_argnums=donate_argnums)

registered = []  # name, key and StableHLO of everything registered
real_register = tpu_torch_pallas.register_custom_kernel

def register(name, key, *, serialized_mlir_module):
    registered.append((name, key, bytes(serialized_mlir_module)))
    real_register(name, key, serialized_mlir_module=serialized_mlir_module)

tpu_torch_pallas.call_custom_kernel, tpu_torch_pallas.register_custom_kernel = launch, register

programs = []
real_program = runtime.TorchTpuProgram

def program(*arguments):
    programs.append(real_program(*arguments))
    return programs[-1]

runtime.TorchTpuProgram = program

transfers = []  # shapes of what was moved to the device, which takes one

def moved(tensor, device):
    if tensor.device != device:
        transfers.append(tuple(tensor.shape))
        tensor = torch.empty_like(tensor, device=device)
    return tensor

tpu_tensors.moved = moved

def compiled(function, **options):
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)

def refusal(function, *arguments, **options):
    try:
        compiled(function, **options)(*arguments)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        return str(error.inner_exception)

def done(**found):
    print(json.dumps(found), flush=True)
    os._exit(0)  # torch_tpu's shutdown waits for a TPU

torch.set_grad_enabled(False)
"""

RECORDED = """
modes._push_eager_mode(modes._EagerMode.INTERNAL_DEFER_ALL)
"""
"""Operations, launches too, are recorded, to be computed together at some later time."""


def run(*parts: str, prelude: str = DEVICE + RECORDED) -> dict[str, Any]:
    """Runs a program, given in parts, after a prelude; returns what it gives to ``done``."""
    text = prelude + "".join(map(textwrap.dedent, parts))
    environment = {**os.environ, **ENVIRONMENT}
    child = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600
    )
    assert child.returncode == 0, child.stderr[-6000:]
    return json.loads(child.stdout.splitlines()[-1])
