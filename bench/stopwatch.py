"""Where the time of a compilation goes: each moment belongs to one part of one layer, so that nothing is left out.

Times are CPU seconds of the process, which other load of the machine changes little.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from typing import Any
from unittest import mock

import jax.export
from torch import fx

from tpu_lowering import backend, compat
from tpu_lowering.runtime.aot.capture import TpuRuntime

TORCH, OURS, JAX = "Dynamo and AOTAutograd", "ours", "JAX's lowering"


class Stopwatch:
    """Exclusive times of nested scopes. It is an observer too: what it is told of ends a stage.

    Attributes:
        seconds: by layer and stage.
        nodes: of the graphs that were captured.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.nodes = 0
        self._scopes: list[tuple[str, str]] = [(TORCH, "")]
        self._pending = [0.0]
        self._last = time.process_time()

    def layer(self, layer: str) -> float:
        """Seconds of a layer."""
        return sum(seconds for (name, _), seconds in self.seconds.items() if name == layer)

    @contextlib.contextmanager
    def within(self, layer: str, stage: str) -> Generator[None]:
        """A scope whose time is a stage's, but for what scopes and marks inside of it take."""
        self._tick()
        self._scopes.append((layer, stage))
        self._pending.append(0.0)
        try:
            yield
        finally:
            self._tick()
            self._flush(self._scopes[-1])
            del self._scopes[-1], self._pending[-1]

    def mark(self, stage: str) -> None:
        """What the innermost scope took since the last mark was for a stage."""
        self._tick()
        self._flush((self._scopes[-1][0], stage))

    def timed(self, layer: str, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are a scope."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.within(layer, stage):
                return function(*args, **kwargs)

        return call

    def table(self, layer: str, stage: str, functions: dict[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
        """A table of functions whose calls are scopes."""
        return {key: self.timed(layer, stage, function) for key, function in functions.items()}

    def stop(self) -> None:
        """Ends the outermost scope."""
        self._tick()
        self._flush(self._scopes[0])

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        self.mark(stage)
        self.nodes += len(module.graph.nodes) if stage == "captured" else 0

    def acted(self, program: str, name: str, actions: Sequence[Any]) -> None:
        self.mark(name)

    def compiled(self, program: Any, source: Any) -> None:
        self.mark("codegen")

    def _tick(self) -> None:
        now = time.process_time()
        self._pending[-1] += now - self._last
        self._last = now

    def _flush(self, key: tuple[str, str]) -> None:
        self.seconds[key] += self._pending[-1]
        self._pending[-1] = 0.0


class TimedRuntime(TpuRuntime):
    """A runtime for captures: what is left of its time when JAX has exported a program is for its text and bytes."""

    def __init__(self, target: Any, watch: Stopwatch) -> None:
        super().__init__(target)
        self.watch = watch

    def compile(self, program: Any, source: Any) -> Any:
        with self.watch.within(JAX, "text and bytes"):
            return super().compile(program, source)


@contextlib.contextmanager
def watching(watch: Stopwatch) -> Generator[Callable[..., Any]]:
    """A scope in which the layers report to a stopwatch; gives the backend. Ours are the calls that torch makes of this
    package: the backend, its compilers, decompositions written here, and what torch's are wrapped in."""
    decompositions, layouts, refusing = backend.decompositions, backend.with_eagers_layouts, backend.mistakes.refusing
    autograd, load, export = compat.aot_autograd, TpuRuntime.compile.__globals__["load"], jax.export.export

    def by_torch(functions: dict[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
        return {
            key: function if function.__module__.startswith("tpu_lowering") else watch.timed(TORCH, "", function)
            for key, function in functions.items()
        }

    def capture_with(**given: Any) -> Callable[..., Any]:
        for compiler in ("fw_compiler", "bw_compiler", "inference_compiler"):
            given[compiler] = watch.timed(OURS, "captured graph", given[compiler])
        given["partition_fn"] = watch.timed(OURS, "partitioner", given["partition_fn"])
        return watch.timed(TORCH, "", autograd(**given))

    def exported(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        return watch.timed(JAX, "export", export(*args, **kwargs))

    with (
        mock.patch.object(backend, "decompositions", lambda: by_torch(decompositions())),
        mock.patch.object(
            backend, "with_eagers_layouts", lambda table: watch.table(OURS, "decompositions", layouts(table))
        ),
        mock.patch.object(
            backend.mistakes, "refusing", lambda table: watch.table(OURS, "decompositions", refusing(table))
        ),
        mock.patch.object(compat, "aot_autograd", capture_with),
        mock.patch.object(compat, "min_cut_partition", watch.timed(TORCH, "", compat.min_cut_partition)),
        mock.patch.object(load, "load", watch.timed(OURS, "load", load.load)),
        mock.patch.object(jax.export, "export", exported),
    ):
        yield watch.timed(OURS, "checks", backend.helion_tpu)
