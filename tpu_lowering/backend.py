"""What Dynamo calls: ``torch.compile(model, backend="helion_tpu")``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import fx

from tpu_lowering import compat, pipeline, releases
from tpu_lowering.capture import effects, fallback, gradients, mistakes, partition, recompiles, shardings
from tpu_lowering.capture.graphs import CapturedGraph
from tpu_lowering.ir import forks
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.kernels import helion
from tpu_lowering.normalise.decompositions import decompositions
from tpu_lowering.normalise.eager_layouts import with_eagers_layouts
from tpu_lowering.observers import Observer, Observers
from tpu_lowering.options import Options
from tpu_lowering.report.dump import dump_observer
from tpu_lowering.report.logs import LogObserver, TorchObserver
from tpu_lowering.runtime import pulse
from tpu_lowering.runtime.base import Runtime
from tpu_lowering.runtime.cache.known_kernels import KnownKernel, known_kernels
from tpu_lowering.runtime.choose import runtime_for
from tpu_lowering.runtime.device import SavedShardings

_numbers = itertools.count()


def __getattr__(name: str) -> None:
    """``entry_point`` is what torch loads when it meets the backend's name; see ``compat.register_backend_once``."""
    if name != "entry_point":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    helion.check_calls()
    compat.trace_for_all_ranks()
    pulse.start()
    compat.register_backend_once(helion_tpu, "helion_tpu")


def helion_tpu(
    module: fx.GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    observers: Sequence[Observer] = (),
    runtime: Runtime | None = None,
) -> Callable[..., Any]:
    """Compiles one graph from Dynamo; registered under the name ``helion_tpu``.

    Args:
        module: the graph.
        examples: what it will be called with, as fake tensors.
        options: fields of ``Options``.
        mode: accepted because Inductor has one; ignored with a warning.
        observers: told of every stage, besides the log and the dump folder.
        runtime: where programs run; by default what ``choose.runtime_for`` gives.

    Returns:
        A callable of the graph's arguments.

    Raises:
        TpuLoweringError: any code. Dynamo wraps it in ``BackendCompilerFailed``, whose
            ``inner_exception`` it is.
    """
    forks.refuse_after_fork()
    helion.check_calls()
    releases.warn_of_untested()
    chosen = Options.create(options, mode)
    pipeline.Pipeline.of(chosen)  # refuses a text that is no pipeline
    gradients.refuse_missing_backward(module)
    observer = Observers([*observers, LogObserver(), TorchObserver(), *dump_observer(chosen.dump)])
    number = next(_numbers)
    if again := recompiles.failed_guard(module.graph):
        observer.acted(f"graph_{number}", "capture", again)
    # What comes out of AOTAutograd's cache has no stages to observe.
    may_keep = bool(chosen.cache) and not (observers or chosen.dump or chosen.mesh)
    table = None if runtime is not None else shardings.Table.of(module, chosen)
    compilation = _Compilation(number, chosen, observer, runtime, may_keep, table)
    if chosen.fallback == "eager":
        tell = functools.partial(compilation.tell, stage="fallback")
        return fallback.compile_around(module, examples, compilation.compile_or_refuse, tell)
    return compilation.compile_or_refuse(module, examples)


@dataclasses.dataclass(frozen=True, eq=False)
class _Compilation:
    """How the graphs of one call of the backend are compiled.

    Attributes:
        number: of the call; part of the programs' names.
        options: what the user chose.
        observer: told of every stage.
        runtime: where programs run; None for where their tensors are.
        may_keep: whether AOTAutograd's cache may keep them.
        table: how tensors lie on a mesh; None for one device.
        saved: what forwards tell their backwards, on a mesh.
    """

    number: int
    options: Options
    observer: Observer
    runtime: Runtime | None
    may_keep: bool
    table: shardings.Table | None = None
    saved: SavedShardings = dataclasses.field(default_factory=SavedShardings)

    def compile_or_refuse(self, part: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        """A graph compiled; where eager refuses it, what raises eager's exception."""
        try:
            mistakes.check_early(part.graph)
            return self._compile(part, arguments)
        except mistakes.RefusedByEager as refused:
            return refused.raise_again

    def _compile(self, part: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        kernels = known_kernels(part) if self.may_keep else None
        kinds: set[str] = set()
        with self._autograd_cache(kernels), effects.coded_refusals(), gradients.coded_refusals():
            compiled = compat.aot_autograd(
                fw_compiler=self._compiler("forward", kernels, kinds),
                bw_compiler=self._compiler("backward", kernels, kinds),
                inference_compiler=self._compiler("inference", kernels, kinds),
                partition_fn=partition.partitioner(
                    self._fusing_chip, compat.parameter_inputs(part), self.table, self.tell
                ),
                decompositions=mistakes.refusing(with_eagers_layouts(decompositions())),
                keep_inference_input_mutations=True,
            )(part, arguments)
        return compiled if kinds == {"inference"} else gradients.refuse_second_gradients(compiled)

    def _autograd_cache(self, kernels: Sequence[KnownKernel] | None) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if kernels is None else _restorable().autograd_cache(self.options, kernels)

    def _compiler(self, kind: str, kernels: Sequence[KnownKernel] | None, kinds: set[str]) -> Callable[..., Any]:
        """What AOTAutograd calls with a graph of a kind, which is entered into ``kinds``.

        ``kernels`` are those that its cache knows the graph by.
        """

        def compile_graph(graph: fx.GraphModule, arguments: Sequence[Any]) -> Any:
            kinds.add(kind)
            if self.table is not None:
                self.table.apply(graph.graph, kind, self.saved.of)
            if kind == "backward":
                compat.keep_saved_tensors()
            where = self._runtime(graph, kind, arguments)
            captured = CapturedGraph(kind, self.number, graph, arguments, self.options, self.observer, where)
            return captured if kernels is None else _restorable().of(captured, where, self.options.cache, kernels)

        if kernels is None:
            return compile_graph
        return compat.serializable_compiler(_restorable().Restorable, compile_graph)

    def _runtime(self, graph: fx.GraphModule, kind: str, arguments: Sequence[Any]) -> Runtime:
        return self.runtime or runtime_for(
            graph.graph, kind, arguments, self.options, None if effects.are_in(graph.graph) else self.saved
        )

    def tell(self, actions: Sequence[Action], stage: str = "partition") -> None:
        """Tells the observer what is known of the graph before it is parted."""
        if actions:
            self.observer.acted(f"graph_{self.number}", stage, actions)

    def _fusing_chip(self, joint: fx.GraphModule, arguments: Any) -> Chip | None:
        """The chip that attention of a joint graph becomes kernels for; None if it stays."""
        if self.options.fuse == "never" and not isinstance(self.options.passes, str):
            return None
        chip = self._runtime(joint, "forward", compat.tree_leaves(arguments)).chip
        return chip if pipeline.fuses(self.options, chip) else None


def _restorable() -> Any:
    """Imported where it is needed: it has a subclass of what AOTAutograd's cache takes, a private class."""
    return importlib.import_module("tpu_lowering.capture.restorable")
