"""Captured graphs as callables: compiled for the sizes they are called with, once for each."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat, errors, pipeline
from tpu_lowering.analyse import numbers
from tpu_lowering.analyse.padding.calls import expression
from tpu_lowering.analyse.padding.roundable_sizes import Padding
from tpu_lowering.capture import effects, recompiles
from tpu_lowering.capture.rounding import Rounding
from tpu_lowering.ir import graphs
from tpu_lowering.ir.mesh import Mesh, coordinates_of, mesh_of
from tpu_lowering.ir.programs import Program
from tpu_lowering.normalise import randomness, shared_memory, specialise
from tpu_lowering.normalise.aliases import APART, Sharing
from tpu_lowering.normalise.collectives import refuse_own_parts, take_collectives, with_mesh
from tpu_lowering.normalise.late_gathers import gather_late
from tpu_lowering.normalise.mask_padding import number_dtype
from tpu_lowering.observers import Observer
from tpu_lowering.options import Options
from tpu_lowering.runtime import peers
from tpu_lowering.runtime.aot.capture import TpuRuntime
from tpu_lowering.runtime.base import RunnableProgram, Runtime
from tpu_lowering.runtime.numbered import NumberedProgram
from tpu_lowering.stages import Progress, Request


class CapturedGraph:
    """One graph from AOTAutograd. AOTAutograd calls it with a list of arguments, which it empties.

    A graph with symbolic sizes is compiled for each set of sizes it meets, beneath Dynamo: neither Dynamo
    nor AOTAutograd runs again. With ``Options.buckets`` sizes are rounded up first, where that is exact.

    A kernel is traced once, and its function may read names that are given other values later. Whether they were is
    asked before each call; then what was compiled is forgotten.

    Programs are kept as long as the compiled function: to drop one would turn a later call of microseconds into one
    of seconds. What bounds their number is ``buckets``; what a further length then costs is a small record of where
    its elements lie.
    """

    def __init__(
        self,
        kind: str,
        number: int,
        module: fx.GraphModule,
        examples: Sequence[Any],
        options: Options,
        observer: Observer,
        runtime: Runtime,
    ) -> None:
        # AOTAutograd's protocol for callables that take one list. On the object, not the class: Dynamo wraps
        # the backward graph and takes over only the object's own attributes.
        self._boxed_call = True
        self.kind, self.number = kind, number
        self.options, self.observer, self.runtime = options, observer, runtime
        self.lock = threading.Lock()
        self.calls: dict[Hashable, RunnableProgram] = {}
        self.programs: dict[Hashable, tuple[Program, RunnableProgram]] = {}
        self.current: tuple[Callable[[], bool], ...] = ()
        self.rounding: Rounding | None = None
        self.numbers: frozenset[sympy.Symbol] = frozenset()  # those that no shape needs
        self.edits: Padding | None = None
        self.sizes: dict[sympy.Symbol, Any] = {}
        self.executed = not isinstance(runtime, TpuRuntime)
        self.captured = with_mesh(module)
        self.mesh: Mesh | None = mesh_of(self.captured)
        self.own_parts = False
        with self._telling():
            self._take(examples)
            if not self.symbolic:
                self.only = self._compile(f"{kind}_{number}", examples)[1]

    def _take(self, examples: Sequence[Any]) -> None:
        """Takes the captured graph in, with what is known of its sizes."""
        module = take_collectives(self.captured, self.own_parts)
        if self.mesh is not None:
            if not self.executed:
                refuse_own_parts(module.graph, self.mesh)
            gather_late(module.graph, ahead=self.runtime.chip.is_tpu)
        self.module, self.effects = effects.take_effects(module) if self.executed else (module, None)
        self.sharing = sharing_of(self.kind, self.module.graph)
        if self.kind == "inference":  # of those where gradients are recorded it is known before they are parted
            shared_memory.mark_shared_memory(self.module)
        randomness.give_states_a_size(self.module.graph)
        self.coordinates = coordinates_of(self.module.graph)
        self.symbolic = _has_sizes(self.module.graph, self.coordinates)
        self.runtime.check(examples)
        if self.symbolic or self.coordinates:
            specialise.refuse_data_dependence(self.module.graph)
            self._analyse_sizes()

    def _telling(self) -> contextlib.AbstractContextManager[None]:
        """A scope whose refusals all ranks hear of that run the graph's programs together."""
        if self.mesh is None or not self.executed:
            return contextlib.nullcontext()
        return peers.telling(self.mesh)

    def __call__(self, arguments: list[Any]) -> list[Any]:
        if self.current and not self.is_current():
            self._compile_again(arguments)
        program = self._for_sizes(arguments) if self.symbolic else self.only
        given = list(arguments)
        arguments.clear()
        if self.effects is None:
            return program(given)
        self.effects.before(given)
        return self.effects.after(given, program(given))

    def is_current(self) -> bool:
        """Whether what the kernels read when they were traced is still so."""
        return all(current() for current in self.current)

    def _compile_again(self, arguments: Sequence[Any]) -> None:
        """Forgets programs whose kernels read other values now."""
        with self.lock:
            if self.is_current():  # another thread was here
                return
            name = f"{self.kind}_{self.number}"
            self.observer.acted(name, "specialise", [recompiles.changed_names(self.module.graph)])
            self.current, self.calls, self.programs = (), {}, {}
            if not self.symbolic:
                self.only = self._compile(name, arguments)[1]

    def _analyse_sizes(self) -> None:
        self.numbers, self.edits = numbers.numbers_of(self.module.graph)
        if not self.coordinates <= self.numbers:
            raise depends_on_rank(self.module.graph, self.coordinates - self.numbers)
        if self.options.buckets and not self.coordinates:
            self.numbers, self.edits = frozenset(), None
            with compat.disable_current_modes():
                self.rounding = Rounding(self.module.graph, self.options.buckets, self.sharing)
            if self.rounding.actions:
                self.observer.acted(f"{self.kind}_{self.number}", "round_sizes", self.rounding.actions)

    @functools.cached_property
    def places(self) -> dict[int, sympy.Symbol]:
        """Positions of the arguments that are numbers which no shape needs."""
        placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        found = {at: expression(node) for at, node in enumerate(placeholders)}
        return {
            at: symbol for at, symbol in found.items() if isinstance(symbol, sympy.Symbol) and symbol in self.numbers
        }

    def _for_sizes(self, arguments: Sequence[Any]) -> RunnableProgram:
        key = tuple(_size_key(argument) for at, argument in enumerate(arguments) if at not in self.places)
        found = self.calls.get(key)
        if found is None:
            with self.lock:
                found = self.calls.get(key) or self._new_sizes(key, arguments)
                self.calls[key] = found
        return found

    def _new_sizes(self, key: Hashable, arguments: Sequence[Any]) -> RunnableProgram:
        """What runs a call with sizes that were not met before; a program is compiled if none is there for them."""
        true = specialise.sizes_of(self.module.graph, arguments)
        if self.rounding is None:
            program, runnable = self._program(key, true, arguments)
            return self._told(program, runnable, true) if self.places else runnable
        rounded = self.rounding.round(true)
        places = self.rounding.arguments(true, rounded, arguments)
        program, runnable = self._program(self.rounding.key(rounded), rounded, places)
        return self.rounding.call(runnable, program, (true, rounded), arguments, self.options.poison)

    def _told(self, program: Program, runnable: RunnableProgram, sizes: dict[sympy.Symbol, Any]) -> RunnableProgram:
        """The program for calls with other numbers too."""
        outputs: Any = self.module.graph.output_node().args[0]
        results = {at: expression(output) for at, output in enumerate(outputs) if isinstance(output, fx.Node)}
        free = {at: one for at, one in results.items() if one is not None and one.free_symbols & self.numbers}
        others = {symbol: number for symbol, number in sizes.items() if symbol not in self.numbers}
        wanted = [sympy.sympify(one).subs(others) for one in (*program.numbers, *free.values())]
        dtypes = tuple(number_dtype(one, sizes=False) for one in program.numbers)
        evaluate = compat.evaluator(wanted, list(self.places.values()))
        return NumberedProgram(runnable, tuple(self.places), evaluate, dtypes, tuple(free))

    def _program(
        self, key: Hashable, sizes: dict[sympy.Symbol, Any], arguments: Sequence[Any]
    ) -> tuple[Program, RunnableProgram]:
        """The program for given sizes; compiled, with the reason why, if there is none yet."""
        if key not in self.programs:
            name = f"{self.kind}_{self.number}_{len(self.programs)}"
            if self.programs:
                self.observer.acted(name, "specialise", [recompiles.new_sizes(self.module.graph, self.sizes, sizes)])
            self.programs[key] = self._compile(name, arguments)
            self.sizes = sizes
        return self.programs[key]

    def _compile(self, name: str, arguments: Sequence[Any]) -> tuple[Program, RunnableProgram]:
        try:
            made = self._run_pipeline(name, arguments)
        except errors.TpuLoweringError as error:
            if error.code != "TL702" or self.own_parts:
                raise
            self.own_parts = True  # the ranks differ: perhaps by a rank's own place, which torch put into the graph
            self._take(arguments)
            made = self._run_pipeline(name, arguments)
        self.current = tuple(dict.fromkeys((*self.current, *made.current)))
        assert made.program is not None and made.runnable is not None
        return made.program, made.runnable

    def _run_pipeline(self, name: str, arguments: Sequence[Any]) -> Progress:
        padding = self.rounding.padding if self.rounding is not None else self.edits
        # Real tensors are computed with here: verifying, constants.
        with self._telling(), compat.disable_current_modes():
            return pipeline.run(
                Request(name, self.module, arguments, self.options, self.observer, self.runtime, self.sharing, padding)
            )


def sharing_of(kind: str, graph: fx.Graph) -> Sharing:
    """What is known of the memory of the results of the graph that AOTAutograd has compiled."""
    if kind == "backward":
        return APART
    results: Any = graph.output_node().args[0]
    known = compat.results_of_forward()
    if known is None:
        return Sharing(views=True, seen=len(results))
    for at in known.placed:
        _refuse_unless_placed(graph, at, known.arguments[at])
    return Sharing(True, known.seen, known.arguments, known.overwritten, tracked=kind == "inference")


def _refuse_unless_placed(graph: fx.Graph, at: int, argument: int | None) -> None:
    """Checks that shape, strides and offset in an argument's memory say all of a result.

    Raises:
        TpuLoweringError: TL307.
    """
    results: Any = graph.output_node().args[0]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    node, base = results[at], placeholders[argument or 0].meta["val"]
    value = node.meta["val"]
    same_size = value.itemsize == base.itemsize or value.is_complex() != base.is_complex()
    if same_size and (value.is_conj(), value.is_neg()) == (base.is_conj(), base.is_neg()):
        return
    what = "a lazy conjugate or negative" if same_size else f"elements of {value.itemsize} bytes"
    raise errors.refuse(
        "TL307",
        f"result {node.name}",
        "expected a view that torch can rebuild from its place in an argument, which depends on sizes here, got "
        f"{what} of {base.dtype}",
        "return a .clone() of it, or view the compiled function's result outside of it",
        graphs.source_line(node),
    )


def _has_sizes(graph: fx.Graph, coordinates: frozenset[sympy.Symbol]) -> bool:
    """Whether a graph has sizes that are symbols; the place of a rank is none."""
    values = [node.meta.get("val") for node in graph.nodes]
    return any(is_symbolic(value) and not specialise.free_symbols(value) <= coordinates for value in values)


def depends_on_rank(graph: fx.Graph, places: frozenset[sympy.Symbol]) -> errors.TpuLoweringError:
    """The refusal of a graph in which something needs the place of a rank as a number."""
    users = [
        node
        for node in graph.nodes
        if node.op != "placeholder" and specialise.free_symbols(node.meta.get("val")) & places
    ]
    user = next((node for node in users if isinstance(node.meta.get("val"), torch.Tensor)), users[-1])
    return errors.refuse(
        "TL706",
        str(user.target),
        "expected shapes and programs that are those of all ranks, got something that only the place of a rank says",
        "give each rank as many elements: pad uneven shards, outside of the compiled function",
        graphs.source_line(user),
    )


def is_symbolic(value: Any) -> bool:
    """Whether a node's value has a size that is a symbol, or is one."""
    return any(
        isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool))
        or (isinstance(leaf, torch.Tensor) and not all(type(size) is int for size in (*leaf.shape, *leaf.stride())))
        for leaf in compat.tree_leaves(value)
    )


def _size_key(argument: Any) -> Hashable:
    if isinstance(argument, torch.Tensor):
        return (argument.shape, argument.stride(), argument.storage_offset(), argument.dtype)
    return (type(argument), argument)
