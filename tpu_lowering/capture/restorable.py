"""Captured graphs that a later process gets back without AOTAutograd, passes or XLA.

AOTAutograd keeps a cache of its own, on disk, by Dynamo's graph. It pickles what a backend compiled; of ours that is a
key and a folder, and the record under that key is checked like every entry of the store.

So does Dynamo, where the user turned on its precompilation (``torch._dynamo.config.caching_precompile``): it keeps its
bytecode and guards beside AOTAutograd's result, and looks them up by the function. What else a program depends on,
versions and the processor, is only in the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

from tpu_lowering import compat, errors
from tpu_lowering.capture.graphs import CapturedGraph
from tpu_lowering.ir import graphs, regions
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels.fingerprints import Followed
from tpu_lowering.lower.precision import Precision
from tpu_lowering.options import Options
from tpu_lowering.runtime.base import Runtime
from tpu_lowering.runtime.cache import executables, program_records
from tpu_lowering.runtime.cache.known_kernels import KnownKernel
from tpu_lowering.runtime.cache.store import Store, digest
from tpu_lowering.runtime.cpu import CpuProgram, CpuRuntime


class Restorable(compat.OutputCode):
    """What AOTAutograd is given in place of a captured graph's program, and calls with a list that it empties."""

    def __init__(
        self,
        program: Callable[[list[Any]], list[Any]],
        folder: str,
        key: str | None,
        kernels: Sequence[Followed] = (),
    ) -> None:
        super().__init__()
        self._boxed_call = True
        self.program, self.folder, self.key, self.kernels = program, folder, key, kernels

    def __call__(self, inputs: Any) -> Any:
        if not all(kernel.is_current() for kernel in self.kernels):
            raise kernel_changed()
        given = list(inputs)
        inputs.clear()
        return self.program(given)

    def prepare_for_serialization(self) -> None:
        """Called before AOTAutograd pickles: refuses if there is nothing to come back to."""
        if self.key is None:
            raise compat.bypass_autograd_cache("the program has no record")

    def __copy__(self) -> Restorable:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Restorable:
        return self  # Dynamo's precompilation copies what it keeps, and a copy would be loaded from the store

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return restore, (self.folder, self.key)

    def post_compile(self, example_inputs: Any, constants: Any, graph_kwargs: Any) -> None:
        """There is nothing to do after loading."""

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        """There are no Triton kernels."""


def restore(folder: str, key: str) -> Restorable:
    """The other end of the pickle.

    Raises:
        LookupError: the record is not there; AOTAutograd then compiles anew.
    """
    program, kernels = program_records.load(Store(pathlib.Path(folder)), key)
    return Restorable(program, folder, key, kernels)


def kernel_changed() -> errors.TpuLoweringError:
    """The refusal of a program that cannot be compiled again: it came from a cache, without its graph."""
    return errors.refuse(
        "TL216",
        "a program of an earlier process",
        "expected kernels that read the values they read when the program was found in the cache, got another value",
        "call torch.compiler.reset() after changing what a kernel reads, or give the kernel the value as an argument",
    )


def of(graph: CapturedGraph, runtime: Runtime, folder: str, kernels: Sequence[KnownKernel]) -> Restorable:
    """A captured graph as AOTAutograd can keep it.

    Its cache knows the graph, but not what a kernel does, nor sizes that are not numbers: graphs with such sizes, or
    with effects, have no record, and those with kernels have one if all their kernels are known, and did not change
    meanwhile.

    Args:
        kernels: those of the graph that this one was made of.
    """
    key = None
    kept = not graph.symbolic and graph.effects is None and graph.mesh is None
    if isinstance(runtime, CpuRuntime) and runtime.store is not None and kept:
        assert isinstance(graph.only, CpuProgram)
        program = graph.only.interface
        assert isinstance(program, Program)
        known = _names(program) <= {kernel.name for kernel in kernels}
        if known and graph.is_current() and all(kernel.is_current() for kernel in kernels):
            key = program_records.save(runtime.store, graph.only, kernels)
    return Restorable(graph, folder, key)


def _names(program: Program) -> set[str]:
    """The kernels that a program calls, without those that were made of its own operators."""
    calls = [call for module in regions.modules(program.module) for call in graphs.kernel_calls(module.graph)]
    return {kernel.name for kernel in map(graphs.kernel_of, calls) if not kernel.generated}


@contextlib.contextmanager
def autograd_cache(options: Options, kernels: Sequence[KnownKernel]) -> Generator[None]:
    """A scope in which AOTAutograd looks graphs up in its cache, under a tag of our own, and keeps ours whole.

    A Helion kernel is a number in a graph, and an operator a name: the tag says what they do. It says, too, which
    settings of the process and versions a graph is traced under.

    Dynamo holds a lock while a backend compiles, so no other compilation is inside the scope. The backward is compiled
    inside too, or the graph would be kept only when a gradient has been asked for.
    """
    meaning = dataclasses.replace(options, cache_bytes=Options.cache_bytes)  # a limit changes no program
    surroundings = (executables.surroundings(), repr(meaning), repr(Precision.of_torch()))
    tag = digest(["helion_tpu", *surroundings, repr(kernels)])
    with compat.autograd_cache(tag):
        yield
