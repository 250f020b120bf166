"""Private names of torch.distributed: groups, meshes and operators of captured graphs, and the store."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Generator, Sequence
from typing import Any

import jax
import torch
import torch.distributed as dist

from tpu_lowering import errors
from tpu_lowering.compat.lookup import private
from tpu_lowering.compat.operators import Namespace

c10d: Any = Namespace("_c10d_functional")
c10d_autograd: Any = Namespace("_c10d_functional_autograd")
dtensor: Any = Namespace("_dtensor")
device_mesh: Any = Namespace("device_mesh")
symm_mem: Any = Namespace("symm_mem")
"""Operators of torch.distributed."""


def coordinate_operator() -> Any:
    """The operator that gives the place of a rank in a mesh, in graphs that are those of all ranks."""
    return device_mesh._runtime_compute_coordinate_on_dim.default


def trace_for_all_ranks() -> None:
    """Has torch trace graphs that are those of all ranks, in a process that is one of several.

    A graph holds numbers of its own rank otherwise, and no two ranks have the same program. Torch reads the setting
    while it traces, so it is made when the backend is first named.
    """
    config: Any = getattr(dist, "config", None)
    several = dist.is_available() and (dist.is_initialized() or os.environ.get("WORLD_SIZE", "1") != "1")
    if several and hasattr(config, "compile_on_one_rank"):
        config.compile_on_one_rank = True


@contextlib.contextmanager
def fake_group(count: int) -> Generator[None]:
    """A scope in which this process is rank 0 of as many ranks that are not there, and whose graphs are those of all.

    Torch's own tests have such a group: its collectives give back what is in memory, so shapes are right and values
    are not.
    """
    fakes = "torch.testing._internal.distributed.fake_pg"
    store = private("torch", fakes, "FakeStore", "a group of ranks that are not there")()
    config: Any = getattr(dist, "config", None)
    before = getattr(config, "compile_on_one_rank", None)
    hook = sys.excepthook  # torch puts its own before it for each group, and leaves it
    dist.init_process_group("fake", store=store, rank=0, world_size=count)
    try:
        trace_for_all_ranks()
        yield
    finally:
        if before is not None:
            config.compile_on_one_rank = before
        dist.destroy_process_group()
        sys.excepthook = hook
        _forget_meshes()


def _forget_meshes() -> None:
    """Clears DTensor's caches: they know meshes by their shape, and give a mesh of the next group that of this one."""
    why = "meshes of groups that are gone"
    private("torch", "torch.distributed.tensor.debug", "_clear_sharding_prop_cache", why)()
    private("torch", "torch.distributed.tensor._redistribute", "_gen_transform_infos", why).cache_clear()


def is_fake_group() -> bool:
    """Whether the default group's ranks are not there."""
    return dist.is_available() and dist.is_initialized() and dist.get_backend() == "fake"


_GROUPS = "torch.distributed.distributed_c10d"


def is_script_object(value: Any) -> bool:
    """Whether a value of a graph stands for an object that is no tensor: a mesh of devices, a group of ranks."""
    return isinstance(value, _script_objects())


@functools.cache
def _script_objects() -> Any:
    """The class of such values; none in a release that has none."""
    try:
        return private("torch", "torch._library.fake_class_registry", "FakeScriptObject", "meshes in graphs")
    except errors.TpuLoweringError:
        return ()


def real_object(value: Any) -> Any:
    """What a value of a graph stands for, if it is an object that is no tensor."""
    return value.real_obj if is_script_object(value) else value


def ranks_of(group: Any) -> tuple[int, ...]:
    """Ranks of a group, in its order: a ``ProcessGroup``, or its name."""
    if isinstance(group, str):
        group = private("torch", _GROUPS, "_resolve_process_group", "the ranks of a group that a graph names")(group)
    return tuple(dist.get_process_group_ranks(group))


def group_name(group: Any) -> str:
    """The name by which a graph names a group."""
    return group if isinstance(group, str) else str(group.group_name)


def own_mesh(full_mesh: torch.Tensor) -> torch.Tensor:
    """The part of a ``[parts, *mesh]`` tensor of ranks that this process is in."""
    module, why = "torch.distributed.device_mesh", "the place of a rank"
    kind = private("torch", module, "DeviceMesh", why)
    return kind._get_mesh_tensor_from_full_mesh(full_mesh)  # type: ignore[no-any-return]


def store() -> Any:
    """The store of the default group: keys and values that all of its ranks see."""
    return private("torch", _GROUPS, "_get_default_store", "what ranks tell each other")()


def group_seconds() -> float:
    """How long the default group's collectives wait, as the user gave it to ``init_process_group``."""
    group = private("torch", _GROUPS, "_get_default_group", "how long ranks wait")()
    options = getattr(group._get_backend(torch.device("cpu")), "options", None)
    timeout = getattr(options, "_timeout", None) or dist.default_pg_timeout
    return float(timeout.total_seconds())


class Cluster:
    """Processes that run programs together: a client of XLA's for the CPU, one device in each process.

    It is a client of our own, as ``cpu_device()``'s is: JAX's own has to be made for all processes before JAX is first
    used, and then holds every process to the fate of the others.
    """

    def __init__(self, address: str, host: str, place: int, count: int, seconds: int) -> None:
        """
        Args:
            address: where the process at place 0 listens, ``host:port``.
            host: this process, as the others reach it.
            place, count: of this process among them.
            seconds: how long to wait for the others.
        """
        why = "programs of several processes"
        limits: dict[str, Any] = {"heartbeat_timeout": 3600, "shutdown_timeout": 5}
        self.service = None
        if place == 0:
            serve = private("jaxlib", "jaxlib._jax", "get_distributed_runtime_service", why)
            self.service = serve(address, count, cluster_register_timeout=seconds, recoverable=True, **limits)
        connect = private("jaxlib", "jaxlib._jax", "get_distributed_runtime_client", why)
        self.client = connect(address, place, init_timeout=seconds, shutdown_on_destruction=False, **limits)
        self.client.connect()
        collectives = private("jaxlib", "jaxlib._jax", "make_gloo_tcp_collectives", why)(self.client, hostname=host)
        made = private("jaxlib", "jaxlib.xla_client", "make_cpu_client", why)(
            distributed_client=self.client, node_id=place, num_nodes=count, collectives=collectives, num_devices=1
        )
        self.devices = sorted(made.devices(), key=lambda device: device.process_index)
        (self.device,) = made.local_devices()

    def leave_service(self) -> None:
        """Parts from the service; to be called by all processes, once all devices have met."""
        self.client.shutdown()

    def end_service(self) -> None:
        """Ends the service; to be called when all processes have left it."""
        if self.service is not None:
            self.service.shutdown()


def run_on(compiled: Any, arrays: Sequence[jax.Array]) -> None:
    """Runs a ``jax.stages.Compiled`` of several processes on this one's parts of its arguments, and waits."""
    for array in compiled.runtime_executable().execute_sharded(list(arrays)).disassemble_into_single_device_arrays():
        for part in array:
            part.block_until_ready()
