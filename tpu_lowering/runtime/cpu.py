"""The embedded runtime: programs that XLA compiled for the CPU, called with the user's torch tensors.

XLA sets its threads to flush denormal numbers, as ``torch.set_flush_denormal(True)`` does in eager: what is smaller
than 1.2e-38 in float32 (2.2e-308 in float64) is 0, as operand and as result. A TPU has no denormal numbers either.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.analyse.partial_updates import updated_in_part
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import arrays, forks, graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import CPU
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.programs import Interface, Output, Program, dense_order
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import interpreter_findings
from tpu_lowering.runtime import calling_convention, owned_memory, peers
from tpu_lowering.runtime.cache import executables
from tpu_lowering.runtime.cache.store import Store
from tpu_lowering.runtime.cpu_rewrites import multiplies_rows, rewritten
from tpu_lowering.runtime.imported_arguments import Imports, Places
from tpu_lowering.runtime.plans import TURNS, Plan, new_at
from tpu_lowering.runtime.spread import Spread

Call = Callable[[Sequence[jax.Array]], Sequence[jax.Array]]
"""Runs a program on arrays of ``compat.cpu_device()``."""


class CpuRuntime:
    """The CPU, in this process.

    Attributes:
        kernels: how Pallas kernels run.
        store: where executables are kept for later processes; None for nowhere.
        settings: what other ranks that run a program with this one must have too.
    """

    chip = CPU

    def __init__(
        self, kernels: Execution = "vectorized", store: Store | None = None, settings: Sequence[str] = ()
    ) -> None:
        self.kernels: Execution = kernels
        self.store = store
        self.settings = settings

    def check(self, arguments: Sequence[Any]) -> None:
        calling_convention.check_devices(arguments)

    def compile(self, program: Program, source: Source) -> CpuProgram:
        if program.mesh is not None:
            return self._compile_together(program, program.mesh, source)
        plan = Plan.of(program, self._updates(program))
        found = self._compiled(program, source, plan)
        if found is None:
            plan = Plan.of(program, ())
            found = self._compiled(program, source, plan)
        assert found is not None
        run, stored = found
        if self.kernels == "tpu_interpret":
            run = functools.partial(interpreter_findings.watched, run)
        return CpuProgram(program, plan, list(program.constants().values()), run, stored)

    def _compiled(self, program: Program, source: Source, plan: Plan) -> tuple[Call, str | None] | None:
        """The program as something to be called, from the store, or compiled and stored; and its key there.

        Without kernels the source says it all, so a program that is in the store is not even traced. What a kernel
        computes is known only when it has been traced; such a program is looked up by its lowered form.

        None for a program with updates that XLA does not make in place.
        """
        lowered, key = None, ""
        if self.store is not None:
            lowered = _lowered(program, source, plan, self.kernels) if source.kernels else None
            kind, text = ("source", source.text) if lowered is None else ("lowered", lowered.as_text())
            key = executables.key(kind, [text, repr(plan)])
            found = executables.load(self.store, key, plan.outputs)
            if found is not None:
                return found, key
        compiled = (lowered or _lowered(program, source, plan, self.kernels)).compile()
        run = _call(compiled, plan)
        if run is None:
            return None
        is_stored = self.store is not None and executables.save(self.store, key, compiled)
        return run, key if is_stored else None

    def _compile_together(self, program: Program, mesh: Mesh, source: Source) -> CpuProgram:
        """A program that the ranks of a mesh run together, once they agree on it; it is not kept in the store.

        Raises:
            TpuLoweringError: TL726 for ranks that are not there; see ``peers.Peers.agree``.
        """
        if compat.is_fake_group():
            raise errors.refuse(
                "TL726",
                f"a program on the mesh {mesh}",
                "expected processes that run it together, got fake ranks",
                "compile it ahead of time, with aot_compile or explain(..., target=...), or start a process a rank",
                calling_convention.first_collective(program),
            )
        together, plan = peers.peers_of(mesh), Plan.of(program, (), on_mesh=True)
        cluster = together.connect()

        def make() -> tuple[str, Any]:
            lowered = _lowered(program, source, plan, self.kernels, Spread(mesh, tuple(cluster.devices)))
            text = lowered.as_text().replace(program.name, "program")  # ranks count other programs too
            return "\n".join([*executables.versions(), *self.settings, text]), lowered

        number, lowered = together.agree(make, calling_convention.first_collective(program))
        compiled = lowered.compile()
        call = compat.direct_call(compiled, plan.outputs, cluster.device) or functools.partial(_call_by_jax, compiled)

        def run(arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
            return together.run(number, lambda: _waited(call(arrays)))

        return CpuProgram(program, plan, list(program.constants().values()), run, device=cluster.device)

    def remarks(self, program: Program) -> list[Action]:
        interpreted = calling_convention.interpreted_calls(program) if self.kernels == "vectorized" else []
        return [*interpreted, *(_in_place(program.input_nodes()[at]) for _, at in self._updates(program))]

    def _updates(self, program: Program) -> tuple[tuple[int, int], ...]:
        """The large inputs that a program updates in part, as ``Plan`` has them."""
        if self.kernels == "tpu_interpret" or program.mesh is not None:
            return ()
        found = [(program.inputs.index(program.signature.mutated[at]), at) for at in updated_in_part(program)]
        types = [TensorType.of(node.meta["val"]) for node in program.input_nodes()]
        return tuple((at, input_) for input_, at in sorted(found) if types[input_].nbytes >= owned_memory.LEAST_BYTES)


def _waited(arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The arrays, once all are there."""
    for array in arrays:
        array.block_until_ready()
    return arrays


def _in_place(argument: fx.Node) -> Action:
    size = TensorType.of(argument.meta["val"]).nbytes
    reason = f"its {size:,} bytes are moved to memory of XLA's own, if nothing else looks at them"
    return Action("updated", argument.name, graphs.source_line(argument), "TL509", reason, size)


class CpuProgram:
    """A compiled program.

    Calling it is thread-safe: it holds no state but the compiled code, the program's constants, and arrays over the
    places in memory where its arguments lay. What it updates in place has a lock of its own.
    """

    def __init__(
        self,
        interface: Interface,
        plan: Plan,
        constants: Sequence[torch.Tensor],
        run: Call,
        stored: str | None = None,
        device: Any = None,
    ) -> None:
        """
        Args:
            interface: how the program is called.
            plan: what the executable takes and gives.
            constants: what it takes after the inputs that are read.
            run: calls the executable.
            stored: its key in a store.
            device: that it runs on, if it is not ``compat.cpu_device()``.
        """
        self.interface, self.plan, self.run, self.stored = interface, plan, run, stored
        self.name = interface.name if isinstance(interface, Program) else "program"
        self.profiled = compat.profiler_enabled()
        read, updated = len(plan.read), len(plan.updates)
        self.imports = Imports(plan.inputs[:read], device)
        self.updated = [Places(input_, device) for input_ in plan.inputs[len(plan.inputs) - updated :]]
        self.constants = list(constants)
        self.constant_arrays = Imports(plan.inputs[read : read + len(self.constants)], device).take(self.constants)
        if updated:
            self.constant_arrays.append(compat.CpuArrays((), TURNS.type.dtype).over(np.ones((), TURNS.type.dtype)))
        computed = [spec for spec in interface.signature.outputs if spec.is_computed]
        self.computes_all = len(computed) == len(interface.signature.outputs) == interface.signature.returned
        self.results = [_Result(spec, type_) for spec, type_ in zip(computed, plan.outputs[updated:], strict=False)]
        in_place = {mutated for mutated, _ in plan.updates}
        self.copied = [at for number, at in enumerate(interface.signature.mutated) if number not in in_place]
        self.reads = [interface.inputs[at] for at in plan.read]
        self.writes = [interface.inputs[at] for _, at in plan.updates]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program.

        Args:
            arguments: the captured graph's arguments: CPU tensors and integers.

        Returns:
            The results, with the strides eager gives them. Mutated arguments have been written back to.
        """
        forks.refuse_after_fork()
        if self.profiled():
            return named_parts(self)(arguments)
        if self.interface.drawn:
            arguments = self.interface.all_arguments(arguments)
        if self.writes:
            computed = self._update([arguments[position] for position in self.writes], arguments)
        else:
            computed = self._execute(arguments, ())
        tensors = [result.of(array) for result, array in zip(self.results, computed, strict=False)]
        if self.copied:
            self._write_back(computed[len(tensors) :], arguments)
        if self.computes_all:
            return tensors
        return calling_convention.results(self.interface.signature, arguments, tensors)

    def _write_back(self, values: Sequence[jax.Array], arguments: Sequence[Any]) -> None:
        """Copies new values of mutated arguments to where they are."""
        given = [arguments[position] for position in self.interface.inputs]
        with torch.no_grad():
            for position, value in zip(self.copied, _new_values(values, given), strict=True):
                arguments[position].copy_(value)

    def _execute(
        self, arguments: Sequence[Any], donated: Sequence[jax.Array], kept: compat.Results | None = None
    ) -> Sequence[jax.Array]:
        """What the executable computes; entered into ``kept`` at once, if that is given.

        All is there when this returns: inputs that are freed would be read too late.
        """
        taken = [*self.imports.take([arguments[position] for position in self.reads]), *self.constant_arrays, *donated]
        computed = self.run(taken) if kept is None else self.run.into(taken, kept)  # type: ignore[attr-defined]
        return _waited(computed)

    def _update(self, updated: Sequence[torch.Tensor], arguments: Sequence[Any]) -> Sequence[jax.Array]:
        """Runs the program and updates some arguments: in place where XLA owns their memory, else by a copy.

        Returns:
            What it computes beside them.
        """
        owners = [owned_memory.memory_of(tensor, places) for tensor, places in zip(updated, self.updated, strict=True)]
        with owned_memory.held(owners):
            kept = compat.Results()
            donated = [
                places.over(tensor) if owner is None else owner.given(self.run, kept, at)
                for at, (tensor, places, owner) in enumerate(zip(updated, self.updated, owners, strict=True))
            ]
            computed = self._execute(arguments, donated, kept)
            new = zip(updated, owners, self.updated, computed[: len(updated)], strict=True)
            for tensor, owner, places, value in new:
                if owner is None:
                    places.write_back(tensor, value)
                else:
                    owner.replace(value, tensor)
        return computed[len(updated) :]

    def execute(self, given: Sequence[torch.Tensor]) -> Sequence[jax.Array]:
        """What the program computes of its inputs, and writes nowhere: results, then values of mutated arguments."""
        arguments: list[Any] = [None] * (1 + max(self.interface.inputs, default=0))
        for position, tensor in zip(self.interface.inputs, given, strict=True):
            arguments[position] = tensor
        donated = [places.over(arguments[at]) for places, at in zip(self.updated, self.writes, strict=True)]
        computed = list(self._execute(arguments, donated))
        updated = {mutated: computed[at] for at, (mutated, _) in enumerate(self.plan.updates)}
        others = iter(computed[len(updated) + len(self.results) :])
        mutated = [
            updated[at] if at in updated else next(others) for at in range(len(self.interface.signature.mutated))
        ]
        return [*computed[len(updated) : len(updated) + len(self.results)], *mutated]


def named_parts(program: CpuProgram) -> Callable[[Sequence[Any]], list[Any]]:
    """The same program, whose parts torch's profiler shows by name: the import of its arguments, the execution, updates
    in place and the copies back to arguments. It costs some microseconds a call, so it is made for a profiler alone."""
    twin: Any = copy.copy(program)
    twin.profiled = lambda: False
    twin.imports = types.SimpleNamespace(take=_named(f"{program.name}: import", program.imports.take))
    for part, shown in (("_execute", "execution"), ("_update", "update"), ("_write_back", "write-back")):
        setattr(twin, part, _named(f"{program.name}: {shown}", getattr(twin, part)))
    return _named(f"tpu_lowering {program.name}", twin)


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with torch.profiler.record_function(name):
            return function(*arguments)

    return call


class _Result:
    """How a tensor is made of one that a program computed: with eager's strides, in memory of its own.

    What only a backward gets stays where XLA put it.
    """

    SMALL = 1 << 16  # bytes that are copied in less time than torch takes to see another's memory

    def __init__(self, spec: Output, type_: TensorType) -> None:
        assert spec.stride is not None
        self.shape, self.stride, self.dtype, self.nbytes = spec.shape, spec.stride, type_.element.torch, type_.nbytes
        self.is_dense = dense_order(spec.shape, spec.stride) is not None
        self.stays = spec.is_saved and self.is_dense and self.nbytes > self.SMALL

    def of(self, array: jax.Array) -> torch.Tensor:
        """The tensor; the array has its elements in the order in which they lie in memory."""
        if self.stays:
            return arrays.borrowed(array).as_strided(self.shape, self.stride)
        if not self.is_dense:
            return calling_convention.strided_copy(arrays.to_torch(array), self.stride)
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        arrays.copy_into(tensor, array, self.nbytes)
        return tensor


def _new_values(values: Sequence[jax.Array], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """New values of mutated arguments, to be read while ``values`` live.

    XLA may give an input that is returned unchanged out as the same buffer. Such a value is copied, or it would change
    with the argument that it was.
    """
    taken = {tensor.data_ptr() for tensor in given} if len(values) > 1 else set[int]()
    return [
        arrays.to_torch(value) if value.size and value.unsafe_buffer_pointer() in taken else arrays.borrowed(value)
        for value in values
    ]


def _lowered(program: Program, source: Source, plan: Plan, kernels: Execution, spread: Spread | None = None) -> Any:
    """The program as StableHLO, for ``compat.cpu_device()``: where JAX finds a TPU or GPU, that is its default; or for
    all devices of a mesh."""
    device = spread.devices[0] if spread else compat.cpu_device()
    sharding = jax.sharding.SingleDeviceSharding(device)
    function = load.load(program, source, kernels)
    updated, count = [at for _, at in plan.updates], len(program.inputs)
    read = [*plan.read, *range(count, count + len(program.constants()))]
    new = new_at(program, plan.updates)

    def of_memory(*given: jax.Array) -> Any:
        logical = [input_.logical(array) for input_, array in zip(plan.inputs, given, strict=True)]
        arguments = [
            logical[at] for _, at in sorted(zip([*read, *updated], [*range(len(read)), *donated], strict=True))
        ]
        if updated or multiplies_rows(program):
            turns = given[len(read)] if updated else None
            results = rewritten(function, load.input_specs(program), updated)(turns, *arguments)
        else:
            results = function(*arguments)
        stored = [plan.inputs[at].stored(results[position]) for at, position in zip(donated, new, strict=True)]
        return (*stored, *(result for position, result in enumerate(results) if position not in new))

    of_memory.__name__ = program.name
    donated = tuple(range(len(plan.inputs) - len(updated), len(plan.inputs)))
    with compat.enable_x64(True), jax.default_device(device):
        if spread:
            values = zip(load.input_values(program), plan.inputs, strict=True)
            types = [TensorType.of(value.permute(input_.order)) for value, input_ in values]
            return spread.jitted(of_memory, types, keep_unused=True).lower(*spread.specs(types))
        jitted = jax.jit(of_memory, keep_unused=True, donate_argnums=donated)
        return jitted.lower(*(input_.spec(sharding) for input_ in plan.inputs))


def _call(compiled: Any, plan: Plan) -> Call | None:
    """Calls what JAX compiled: directly, where arrays are all that it needs; None if it does not update in place."""
    direct = compat.direct_call(compiled, plan.outputs)
    if plan.updates and (direct is None or compat.aliases(compiled) != plan.aliases()):
        return None
    return direct or functools.partial(_call_by_jax, compiled)


def _call_by_jax(compiled: Any, given: Sequence[jax.Array]) -> Sequence[jax.Array]:
    with compat.enable_x64(True):
        return compiled(*given)
