"""Programs of all ranks on torch_tpu's device, up to the launch: the world is a fake group of four in one process."""

from __future__ import annotations

from tests.runtime.torch_tpu.tpu_alone import run

WORLD = """
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch_tpu._internal.pallas import pallas

dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
# What torch_tpu asks the TPU, answered.
pallas._device_ops_backend._get_local_device_attributes = lambda: {"device_kind": "TPU v7"}
pallas.device_mesh.get_device_assignment = lambda group: [0, 2, 1, 3]

assigned = []

def launch(name, key, *, inputs, output_shapes, donate_argnums, device_assignment=()):
    assigned.append((list(device_assignment), [tuple(t.shape) for t in inputs], [tuple(t.shape) for t in output_shapes]))
    return [torch.empty_like(t) for t in output_shapes]

tpu_torch_pallas.call_custom_kernel = launch
"""


def test_a_program_of_all_ranks() -> None:
    """Local shapes in and out, torch_tpu's own numbers of the devices, the collective in the registered program."""
    found = run(
        WORLD,
        """
        def function(x, scale):
            return functional.all_gather_tensor(x * scale, 0, dist.group.WORLD), x.sum()

        results = compiled(function)(empty(8, 128), empty())
        text = programs[0].registered.exported.mlir_module()
        done(
            results=[list(r.shape) for r in results], assigned=assigned, registered=len(registered),
            gathers=text.count("stablehlo.all_gather"), devices=programs[0].registered.exported.nr_devices,
        )
        """,
    )
    assert found["results"] == [[32, 128], []]
    assert found["assigned"] == [[[0, 2, 1, 3], [[8, 128], [1]], [[32, 128], [1]]]]
    assert (found["registered"], found["gathers"], found["devices"]) == (1, 1, 4)


def test_some_ranks_are_refused() -> None:
    found = run(
        WORLD,
        """
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]

        def function(x):
            return functional.all_reduce(x, "sum", groups[0])

        done(text=refusal(function, empty(8, 128)))
        """,
    )
    assert found["text"].startswith(
        "[TL707] tensors that no ranks can share a program on: a program on the mesh axis_1 2\n"
    )
    assert "got tensors on tpu:0 of the ranks [0, 1] alone" in found["text"]
