"""Programs on any JAX device, or on a mesh of them, called with torch tensors on the CPU.

``options={"device": "tpu:0"}``, or ``{"mesh": {"data": 4, "model": 2}}``: there XLA partitions each program, arguments
lie as they are marked (``ir.shardings``), and results as XLA's partitioner has them. What a backward is given lies as
its forward left it.

What a call moves:

==========================  ========================================================================================
parameters, buffers         in, once; again when they were updated (see ``runtime.device_memory``)
other arguments             in, each call, unless the same tensor with the same values comes again; those that a
                            backward is given stay until the forward is called again
results                     out, each call, as CPU tensors of their own
mutated arguments           out, each call; the new value stays on the device and is not moved in by the next call
results of a forward that   out, and they stay on the device as long as the tensor lives: its backward does not move
records gradients           them in
==========================  ========================================================================================

All of a call's transfers in, the program and all transfers out are enqueued before anything is waited for. A call
returns when its results have arrived: a CPU tensor cannot say that its values are still to come.

The new value of a mutated argument goes back at every call, for the same reason: torch may read it at any time, and
nobody would tell us. The buffer on the device is donated, so it is updated in place there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips, forks, shardings
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels import jaxprs
from tpu_lowering.options import Axes
from tpu_lowering.runtime import calling_convention
from tpu_lowering.runtime.device_memory import (
    DeviceMemory,
    Slots,
    fetch,
    is_static,
    memory_of,
    put,
    unfilled,
    write_back,
)
from tpu_lowering.runtime.places import Place


class SavedShardings:
    """How what a forward gives lies on a mesh, for the backward that it is given to; filled as forwards are compiled.

    AOTAutograd describes results and a backward's inputs: a saved value has one name in both graphs, and a gradient
    belongs to a result. With sizes that change, it is the last program that counts; an array that lies otherwise is
    moved again.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Axes] = {}
        self._on_devices_alone: set[str] = set()

    def see(self, graph: fx.Graph, position: int, axes: Axes) -> None:
        """Enters a result of a forward, by its position among all results."""
        output = graph.output_node()
        nodes: Any = output.args[0]
        described = output.meta.get("desc") or (None,) * len(nodes)
        if isinstance(nodes[position], fx.Node):
            self._known[nodes[position].name] = self._known[described[position]] = axes

    def leave(self, graph: fx.Graph, position: int) -> None:
        """Enters a result that the forward leaves on the devices alone."""
        nodes: Any = graph.output_node().args[0]
        self._on_devices_alone.add(nodes[position].name)

    def is_on_devices_alone(self, node: fx.Node) -> bool:
        """Whether an input of a backward has its values on the devices alone."""
        return node.name in self._on_devices_alone

    def of(self, node: fx.Node) -> Axes | None:
        """How an input of a backward lies; None for one that is not known."""
        result = compat.result_of_tangent(node.meta.get("desc"))
        return self._known.get(node.name if result is None else result)


class DeviceRuntime:
    """A place of JAX's, for torch tensors on the CPU. Kernels run as Mosaic kernels on a TPU, elsewhere as on the CPU.

    Made while AOTAutograd compiles the graph that it is for.

    Attributes:
        place: the device or mesh.
        in_backward: whether the graph is a backward.
        keeps_results: whether the graph is a forward that records gradients.
        advanced: positions of arguments whose version counter AOTAutograd advances before each call.
        graph: the graph, if what it gives is what the caller gets; else None.
        saved: shared by a forward and its backward.
    """

    def __init__(
        self,
        place: Place,
        kind: str = "inference",
        kernels: Execution = "vectorized",
        graph: fx.Graph | None = None,
        saved: SavedShardings | None = None,
    ) -> None:
        self.place, self.graph, self.saved = place, graph, saved or SavedShardings()
        self.on_tpu = place.device.platform == "tpu"
        self.kernels: Execution = "mosaic" if self.on_tpu else kernels
        self.in_backward, self.keeps_results = kind == "backward", kind == "forward"
        self.advanced = () if self.in_backward else compat.versions_advanced()

    @property
    def chip(self) -> Chip:
        return chips.of_device(self.place.device.device_kind, "JAX") if self.on_tpu else CPU

    def check(self, arguments: Sequence[Any]) -> None:
        calling_convention.check_devices(arguments)

    def remarks(self, program: Program) -> list[Action]:
        return calling_convention.interpreted_calls(program) if self.kernels == "vectorized" else []

    def compile(self, program: Program, source: Source) -> DeviceProgram:
        calling_convention.refuse_mesh(program, f"a program on {self.place.device}")
        return DeviceProgram(program, source, self)


def compile_for(
    program: Program,
    source: Source,
    place: Place,
    given: Sequence[jax.sharding.Sharding],
    kernels: Execution,
    chip: Chip = CPU,
    orders: Sequence[calling_convention.Order] = (),
    left: Sequence[bool] = (),
) -> Any:
    """The executable of a program for a place, with the buffers of mutated inputs donated.

    Results lie on the device; on a mesh as XLA's partitioner has them, but new values of mutated arguments as those.

    Args:
        program: a lowered program.
        source: its source.
        place: where it will run.
        given: how each input lies.
        kernels: how Pallas kernels run.
        chip: what kernels are traced for.
        orders: for results that leave in storage order, and are to leave as their dimensions are, that order.
        left: for each computed result, whether it stays on the devices alone.
    """
    function = calling_convention.in_logical_order(load.load(program, source, kernels), orders)
    scope = jaxprs.kernel_scope([], chip) if chip.is_tpu else contextlib.nullcontext()
    with scope, compat.enable_x64(True), place.scope():
        constants = [place.sharding()] * len(program.constants())
        specs = load.input_specs(program, [*given, *constants])
        donated = donated_inputs(program, place)
        jitted = jax.jit(function, donate_argnums=donated, out_shardings=_results(program, place, given, left))
        return jitted.lower(*specs).compile()


def donated_inputs(program: Program, place: Place) -> tuple[int, ...]:
    """The inputs whose buffers become those of their new values."""
    return () if place.is_shared else program.donated_inputs()


def _results(program: Program, place: Place, given: Sequence[jax.sharding.Sharding], left: Sequence[bool]) -> Any:
    """How results lie; None for one that XLA decides on."""
    if place.mesh is None:
        return place.sharding()
    signature = program.signature
    if place.is_shared:  # what is not whole, this process may have only a part of
        whole = place.sharding()
        return (*(None if alone else whole for alone in left), *[whole] * len(signature.mutated))
    placeholders = program.module.graph.find_nodes(op="placeholder")
    known = [
        given[program.inputs.index(position)]
        if position in program.inputs
        else place.sharding(shardings.axes_of(placeholders[position]) or ())
        for position in signature.mutated
    ]
    return (*[None] * len(left), *known)


class DeviceProgram:
    """A compiled program. Calling it is thread-safe: what it holds of arguments is theirs, see ``DeviceMemory``."""

    def __init__(self, program: Program, source: Source, runtime: DeviceRuntime) -> None:
        self.program, self.runtime, place = program, runtime, runtime.place
        self.memory: DeviceMemory = memory_of(place)
        ahead = [int(position in runtime.advanced) for position in program.inputs]
        saved = {spec.place.base for spec in program.signature.outputs if spec.place and spec.place.of_argument}
        slots = [slot for slot, position in enumerate(program.inputs) if runtime.keeps_results and position in saved]
        given = [place.sharding(shardings.axes_of(node) or ()) for node in program.input_nodes()]
        alone = [runtime.in_backward and runtime.saved.is_on_devices_alone(node) for node in program.input_nodes()]
        self.slots = Slots(self.memory, given, ahead, runtime.in_backward, frozenset(slots), alone)
        self.computed = [spec for spec in program.signature.outputs if spec.is_computed]
        orders = calling_convention.orders_of_results(program.signature)
        # What stays for the backward leaves as the backward takes it.
        stays = [runtime.keeps_results and spec.is_saved for spec in self.computed]
        self.saved = [order if kept else None for order, kept in zip(orders, stays, strict=True)]
        # Where other processes have some of the devices, a tensor of undefined memory stands for it.
        shared = place.is_shared and runtime.graph is not None
        self.left = [shared and kept and 0 not in spec.shape for spec, kept in zip(self.computed, stays, strict=True)]
        self.compiled = compile_for(
            program, source, place, given, runtime.kernels, runtime.chip, self.saved, self.left
        )  # fmt: skip
        self._tell_backward([None if kept else order for order, kept in zip(orders, stays, strict=True)])
        self.donated = donated_inputs(program, place)
        with compat.enable_x64(True):
            self.constants = [put(value, place, place.sharding()) for value in program.constants().values()]
        self.pointers = frozenset(pointer for value in self.constants for pointer in _pointers(value))

    def _tell_backward(self, orders: Sequence[calling_convention.Order]) -> None:
        """Enters how the results lie that the caller gets, by the orders in which they leave."""
        graph, signature = self.runtime.graph, self.program.signature
        if graph is None or not self.runtime.keeps_results:
            return
        computed = [at for at, spec in enumerate(signature.outputs) if spec.is_computed]
        lie = self.compiled.output_shardings
        for at, lies, order, alone in zip(computed, lie, orders, self.left, strict=False):
            axes = shardings.axes_in(lies)
            if axes is not None and at < signature.returned:
                self.runtime.saved.see(graph, at, shardings.permuted(axes, order))
            if alone:
                self.runtime.saved.leave(graph, at)

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program.

        Args:
            arguments: the captured graph's arguments: CPU tensors and integers.

        Returns:
            The results, CPU tensors with the strides eager gives them. Mutated arguments have been written back to.
        """
        forks.refuse_after_fork()
        arguments = self.program.all_arguments(arguments)
        with compat.enable_x64(True):
            with self.memory.lock:
                inputs = self._take(arguments)
                results = self.compiled(*inputs, *self.constants)
                if self.runtime.in_backward:
                    self.memory.backwards += 1
            signature = self.program.signature
            computed = len(results) - len(signature.mutated)
            for at, result in enumerate(results):
                if at >= computed or not self.left[at]:
                    result.copy_to_host_async()
            tensors = [
                unfilled(result, order) if alone else fetch(result, order)
                for result, order, alone in zip(results, self.saved, self.left, strict=False)
            ]
            for position, array in zip(signature.mutated, results[computed:], strict=True):
                write_back(arguments[position], array)
            with self.memory.lock:
                self._keep_mutated(arguments, inputs, results)
                if self.runtime.keeps_results:
                    self._keep_results(tensors, results)
        return calling_convention.results(signature, arguments, tensors)

    def _take(self, arguments: Sequence[Any]) -> list[jax.Array]:
        """The program's inputs on the device; donated ones belong to this call alone."""
        inputs: list[jax.Array] = []
        for slot, position in enumerate(self.program.inputs):
            array, copy = self.slots.take(slot, arguments[position])
            inputs.append(array)
            if slot in self.donated and copy is not None:
                copy.array = None
        for slot in self.donated:
            if sum(other is inputs[slot] for other in inputs) > 1:
                inputs[slot] = inputs[slot].copy()
        return inputs

    def _keep_mutated(
        self, arguments: Sequence[Any], inputs: Sequence[jax.Array], results: Sequence[jax.Array]
    ) -> None:
        """Keeps the new values of mutated arguments, which the arguments hold by now.

        All other copies of their storages are dropped: their tensors may have version counters of their own.
        """
        mutated = self.program.signature.mutated
        lasting = [is_static(arguments[position]) for position in mutated]
        lasting = [any((self.memory.forget(arguments[p]), last)) for p, last in zip(mutated, lasting, strict=True)]
        computed = len(results) - len(mutated)
        # An array that is the buffer of something else as well must not be donated by the next call.
        others = [array for array in (*inputs, *results[:computed]) if mutated and not array.is_deleted()]
        taken = frozenset(pointer for array in others for pointer in _pointers(array))
        for position, array, last in zip(mutated, results[computed:], lasting, strict=True):
            if _pointers(array) & (taken | self.pointers):
                continue
            taken |= _pointers(array)
            copy = self.memory.keep(arguments[position], _without_host_copy(array), self._lies(array), lasting=last)
            if position in self.program.inputs:
                self.slots.see(self.program.inputs.index(position), arguments[position], copy)

    def _lies(self, array: jax.Array) -> jax.sharding.Sharding:
        """How an array lies, as programs that take it write that."""
        axes = shardings.axes_in(array.sharding)
        return array.sharding if axes is None else self.runtime.place.sharding(axes)

    def _keep_results(self, tensors: Sequence[torch.Tensor], results: Sequence[jax.Array]) -> None:
        """Keeps results as long as they live, those that the caller gets as they left the program."""
        for spec, order, tensor, array in zip(self.computed, self.saved, tensors, results, strict=False):
            seen = tensor if order is None or spec.stride is None else tensor.as_strided(spec.shape, spec.stride)
            if seen.numel() and seen.stride() == spec.stride and seen.shape == spec.shape:
                self.memory.keep(seen, _without_host_copy(array), self._lies(array), lasting=True)


def _pointers(array: jax.Array) -> frozenset[int]:
    """Where an array lies on the devices of this process; an array of no elements is nowhere."""
    if not array.size:
        return frozenset((id(array),))
    return frozenset(shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards)


def _without_host_copy(array: jax.Array) -> jax.Array:
    """The same buffers as another array: an array keeps, as long as it lives, the host memory it was fetched to."""
    buffers = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, buffers)
