"""One mesh over two processes of two CPU devices each: each moves its devices' part of what both have."""

from __future__ import annotations

import os
import socket

from tests.processes import forked

PROGRAM = """
import copy, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
import torch
import tpu_lowering
from tests.runtime.sharded.llama import SHARDINGS, Llama, batch

assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
torch.manual_seed(0)
model = Llama(1)
model.register_buffer("calls", torch.zeros(8))
twin = copy.deepcopy(model)


def step(model, input_ids, labels):
    model.calls.add_(1)
    return model(input_ids, labels)


options = {"mesh": {"data": 2, "model": 2}, "shardings": {**SHARDINGS, "calls": ("data",)}, "device": "cpu"}
run = torch.compile(step, backend="helion_tpu", fullgraph=True, options=options)
optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (model, twin)]
for number in range(2):
    losses = [run(model, *batch(number)), step(twin, *batch(number))]
    for loss, optimizer in zip(losses, optimizers):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-4)
assert model.calls.tolist() == [2] * 8
parts = [array for array in jax.live_arrays() if array.shape == (64, 32) and not array.is_fully_replicated]
assert parts and all(shard.data.shape == (32, 32) for array in parts for shard in array.addressable_shards)
loss = run(model, *batch())
heads = [array for array in jax.live_arrays() if array.shape == (8, 8, 16, 4)]  # saved, transposed
assert heads and all(array.addressable_shards[0].data.shape == (4, 4, 16, 4) for array in heads)
loss.backward()

with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.clone(), lambda kept: kept):
    loss = run(model, *batch())
try:
    loss.backward()
except tpu_lowering.TpuLoweringError as error:
    assert error.code == "TL718" and "expected the tensor that the forward gave" in str(error), error
else:
    raise AssertionError("expected a refusal")
print("equal")
"""


def test_a_mesh_of_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    processes = [forked.server().start("-c", PROGRAM, str(rank), address, XLA_FLAGS=flags) for rank in range(2)]
    try:
        for process in processes:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-4000:]
            assert output.splitlines()[-1] == "equal"
    finally:
        for process in processes:
            process.kill()
