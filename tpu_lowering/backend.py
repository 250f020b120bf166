"""What Dynamo calls: ``torch.compile(model, backend="helion_tpu")``."""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from tpu_lowering import compat, pipeline, releases
from tpu_lowering.capture import effects, fallback, gradients, mistakes, partition, recompiles
from tpu_lowering.capture.graphs import CapturedGraph
from tpu_lowering.ir import forks
from tpu_lowering.ir.chips import Chip
from tpu_lowering.kernels import helion
from tpu_lowering.normalise.decompositions import decompositions
from tpu_lowering.normalise.eager_layouts import with_eagers_layouts
from tpu_lowering.observers import Observer, Observers
from tpu_lowering.options import Options
from tpu_lowering.report.dump import dump_observer
from tpu_lowering.report.logs import LogObserver
from tpu_lowering.runtime.base import Runtime
from tpu_lowering.runtime.cache.known_kernels import KnownKernel, known_kernels
from tpu_lowering.runtime.choose import runtime_for

_numbers = itertools.count()


def __getattr__(name: str) -> None:
    """``entry_point`` is what torch loads when it meets the backend's name; see ``compat.register_backend_once``."""
    if name != "entry_point":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    helion.check_calls()
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
    observer = Observers([*observers, LogObserver(), *dump_observer(chosen.dump)])
    number = next(_numbers)
    if again := recompiles.failed_guard():
        observer.acted(f"graph_{number}", "capture", again)

    # What comes out of AOTAutograd's cache has no stages to observe.
    may_keep = bool(chosen.cache) and not (observers or chosen.dump)
    # Imported where it is needed: it is a subclass of what AOTAutograd's cache takes, a private class.
    restorable: Any = importlib.import_module("tpu_lowering.capture.restorable") if may_keep else None

    def compiler(kind: str, kernels: Sequence[KnownKernel] | None) -> Callable[..., Any]:
        def compile_graph(graph: fx.GraphModule, arguments: Sequence[Any]) -> Any:
            if kind == "backward":
                compat.keep_saved_tensors()
            where = runtime or runtime_for(graph.graph, kind, arguments, chosen)
            captured = CapturedGraph(kind, number, graph, arguments, chosen, observer, where)
            return captured if kernels is None else restorable.of(captured, where, chosen.cache, kernels)

        return compile_graph if kernels is None else compat.serializable_compiler(restorable.Restorable, compile_graph)

    def chip_of(joint: fx.GraphModule, arguments: Any) -> Chip | None:
        if chosen.fuse == "never" and not isinstance(chosen.passes, str):
            return None
        where = runtime or runtime_for(joint.graph, "forward", compat.tree_leaves(arguments), chosen)
        return where.chip if pipeline.fuses(chosen, where.chip) else None

    def compile_whole(part: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        kernels = known_kernels(part) if may_keep else None
        with (
            contextlib.nullcontext() if kernels is None else restorable.autograd_cache(chosen, kernels),
            effects.coded_refusals(),
        ):
            compiled = compat.aot_autograd(
                fw_compiler=compiler("forward", kernels),
                bw_compiler=compiler("backward", kernels),
                inference_compiler=compiler("inference", kernels),
                partition_fn=partition.partitioner(chip_of),
                decompositions=mistakes.refusing(with_eagers_layouts(decompositions())),
                keep_inference_input_mutations=True,
            )(part, arguments)
        return gradients.refuse_second_gradients(compiled)

    def compile_or_refuse(part: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        try:
            mistakes.check_early(part.graph)
            return compile_whole(part, arguments)
        except mistakes.RefusedByEager as refused:
            return refused.raise_again

    if chosen.fallback == "eager":
        return fallback.compile_around(module, examples, compile_or_refuse)
    return compile_or_refuse(module, examples)
