"""Compiles a function with ``helion_tpu``, records what every stage made of it, and compares it with eager.

::

    record = check(fn, lambda: (torch.randn(4, 8),), fresh=("exp_into.out",), aliased=(), allocations=0)
    assert "cat" in record.after.text

``check`` runs the function and its compiled form on arguments of their own. It compiles twice: with ``verify``
and ``poison`` on, so that an element which eager leaves undefined is NaN and never equal by luck, and without
them, because only then are kernels called without the operands that they make fresh.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from tpu_lowering import errors, pipeline
from tpu_lowering.analyse import splits
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.operators import is_allocation, is_fill
from tpu_lowering.ir.printer import print_graph
from tpu_lowering.ir.programs import Program
from tpu_lowering.observers import Observers
from tpu_lowering.options import Options
from tpu_lowering.stages import Request

CHECKING = {"verify": True, "poison": True}
NORMALISED = pipeline.AS_WRITTEN


@dataclasses.dataclass(frozen=True)
class Stage:
    """A graph after one stage; passes edit the graph in place, so this is what it was then.

    Attributes:
        name: "captured", "specialise", a step's or a pass's name, "lower".
        text: the graph, printed.
        allocations: number of allocations.
        fills: number of fills.
        fresh: written operands that the kernel allocates, as "kernel.operand", in order.
        aliased: written operands whose old contents are passed, in order.
        programs: number of programs that torch_tpu would make of it.
    """

    name: str
    text: str
    allocations: int
    fills: int
    fresh: tuple[str, ...]
    aliased: tuple[str, ...]
    programs: int

    @staticmethod
    def of(name: str, graph: fx.Graph) -> Stage:
        return Stage(
            name,
            print_graph(graph),
            sum(map(is_allocation, graph.nodes)),
            sum(map(is_fill, graph.nodes)),
            tuple(_written(graph, fresh=True)),
            tuple(_written(graph, fresh=False)),
            splits.program_count(graph, splits.RULES["torch_tpu"]),
        )


def _written(graph: fx.Graph, fresh: bool) -> list[str]:
    found: list[str] = []
    for node in graphs.kernel_calls(graph):
        kernel, aliased = graphs.kernel_of(node), splits.aliased_operands(node)
        short = kernel.name.rpartition("::")[2]
        found += [f"{short}.{kernel.operands[at].name}" for at in kernel.tied() if (at not in aliased) is fresh]
    return found


@dataclasses.dataclass
class Graph:
    """What was observed of one captured graph."""

    stages: list[Stage] = dataclasses.field(default_factory=list)
    actions: list[Action] = dataclasses.field(default_factory=list)
    program: Program | None = None
    source: str = ""

    def at(self, name: str) -> Stage:
        """The last stage of a name."""
        return [stage for stage in self.stages if stage.name == name][-1]


@dataclasses.dataclass
class Record:
    """What was observed of a compilation, and what the compiled function returned.

    The properties are those of its only graph; ``graphs`` has them all, by the program's name without
    its number: ``inference``, ``forward``, ``backward``.
    """

    graphs: dict[str, Graph] = dataclasses.field(default_factory=dict)
    results: Any = None

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        self._graph(program).stages.append(Stage.of(stage, module.graph))

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        self._graph(program).actions.extend(actions)

    def compiled(self, program: Program, source: Source) -> None:
        graph = self._graph(program.name)
        graph.program, graph.source = program, source.text

    def _graph(self, program: str) -> Graph:
        kind, _, number = program.partition("_")
        name = kind if "_" not in number else f"{kind}_{number.partition('_')[2]}"
        return self.graphs.setdefault(name, Graph())

    @property
    def only(self) -> Graph:
        (graph,) = self.graphs.values()
        return graph

    @property
    def before(self) -> Stage:
        """The graph before the passes: normalised, as the user wrote it."""
        return self.only.at(NORMALISED)

    @property
    def after(self) -> Stage:
        """The graph that code was generated for."""
        return self.only.at("lower")

    @property
    def actions(self) -> list[Action]:
        return self.only.actions

    @property
    def source(self) -> str:
        """The generated code."""
        return self.only.source

    @property
    def fresh(self) -> tuple[str, ...]:
        return self.after.fresh

    @property
    def aliased(self) -> tuple[str, ...]:
        return self.after.aliased

    @property
    def allocations(self) -> int:
        return self.after.allocations

    @property
    def fills(self) -> int:
        return self.after.fills

    @property
    def programs(self) -> int:
        """Programs that torch_tpu would make of the final graph; see ``before.programs``."""
        return self.after.programs

    @property
    def kept(self) -> tuple[str, ...]:
        """Codes of the buffers that passes kept, in order."""
        return tuple(action.code for action in self.actions if action.kind == "kept")


def compile_and_record(function: Callable[..., Any], *arguments: Any, dynamic: bool = False, **options: Any) -> Record:
    """Compiles a function, calls it once and records both.

    Options are those of the backend; ``verify`` and ``poison`` are on unless given.
    """
    record = Record()
    record.results = compiled(function, record, dynamic, **options)(*arguments)
    return record


def compiled(function: Callable[..., Any], record: Record, dynamic: bool = False, **options: Any) -> Callable[..., Any]:
    """The compiled form of a function; ``record`` is filled when it is first called."""
    torch._dynamo.reset()
    backend = functools.partial(helion_tpu, options=CHECKING | options, observers=[record])
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)


def check(
    function: Callable[..., Any],
    make_arguments: Callable[[], Sequence[Any]],
    *,
    model: Callable[..., Any] | None = None,
    defined: Callable[[Any], Any] = lambda results: results,
    dynamic: bool = False,
    options: dict[str, Any] | None = None,
    **expected: Any,
) -> Record:
    """Compares a function, compiled, with itself in eager; then its record with what is expected of it.

    Equal are: results (values, dtypes, shapes, strides), the whole memory behind every argument, and which
    results share memory with each other and with arguments.

    Args:
        function: what is compiled.
        make_arguments: makes the arguments, each time the same, under a seed set here.
        model: runs in place of ``function`` in eager, for kernels that eager cannot run.
        defined: of the results, the part that eager defines.
        dynamic: of ``torch.compile``.
        options: of the backend, besides ``verify`` and ``poison``.
        expected: properties of the record: ``fresh``, ``aliased``, ``allocations``, ``fills``, ``kept``,
            ``programs``.
    """
    given = _made(make_arguments)
    wanted = (model or function)(*given)
    record = _compare_compiled(function, make_arguments, given, wanted, defined, dynamic=dynamic, **(options or {}))
    plain = {"verify": False, "poison": False, **(options or {})}
    _compare_compiled(function, make_arguments, given, wanted, defined, dynamic=dynamic, **plain)
    found = {name: getattr(record, name) for name in expected}
    assert found == expected, record.after.text
    return record


def _compare_compiled(
    function: Callable[..., Any],
    make_arguments: Callable[[], Sequence[Any]],
    given: Sequence[Any],
    wanted: Any,
    defined: Callable[[Any], Any],
    **how: Any,
) -> Record:
    own = _made(make_arguments)
    record = compile_and_record(function, *own, **how)
    compare(defined(record.results), defined(wanted))
    for position, (mine, theirs) in enumerate(zip(_tensors(own), _tensors(given), strict=True)):
        compare(_memory(mine), _memory(theirs), f"memory of argument {position}")
    assert sharing(record.results, own) == sharing(wanted, given)
    return record


def capture(function: Callable[..., Any], *arguments: Any) -> fx.GraphModule:
    """The graph that AOTAutograd makes of a function: ATen operators, nothing of ours done to it."""
    found: list[fx.GraphModule] = []

    class Keep(Record):
        def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
            if stage == "captured":
                found.append(module)

    compiled(function, Keep(), verify=False, poison=False)(*arguments)
    (module,) = found
    return module


def normalised(captured: fx.GraphModule) -> fx.GraphModule:
    """A copy of a captured graph as the passes get it."""
    given = [node.meta["val"] for node in captured.graph.nodes if node.op == "placeholder"]
    request = Request("normalised", captured, given, Options(), Observers([]))
    return pipeline.Pipeline().up_to(pipeline.AS_WRITTEN).run(request).module


def refusal(
    function: Callable[..., Any], make_arguments: Callable[[], Sequence[Any]], **options: Any
) -> errors.Refusal:
    """The coded error that compiling a function ends with."""
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compile_and_record(function, *_made(make_arguments), **options)
    error = caught.value.inner_exception
    assert isinstance(error, errors.TpuLoweringError), error
    return error.refusal


def compare(actual: Any, expected: Any, what: str = "results") -> None:
    """Equal structure, and equal tensors within the default tolerances of their dtype."""
    assert torch.utils._pytree.tree_structure(actual) == torch.utils._pytree.tree_structure(expected), what
    pairs = zip(torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected), strict=True)
    for index, (mine, theirs) in enumerate(pairs):
        if isinstance(theirs, torch.Tensor):
            strides = theirs.numel() > 0
            torch.testing.assert_close(
                mine, theirs, check_stride=strides, msg=lambda text, at=index: f"{what}, {at}: {text}"
            )
        else:
            assert mine == theirs, f"{what}, {index}"


def sharing(results: Any, arguments: Any) -> list[int]:
    """For each tensor result, the first tensor that it shares memory with: counted over arguments, then results."""
    tensors = [*_tensors(arguments), *_tensors(results)]
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    first = [storages.index(storage) if storage else at for at, storage in enumerate(storages)]
    return first[len(_tensors(arguments)) :]


def _made(make_arguments: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    torch.manual_seed(0)
    return make_arguments()


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """All of the memory that a tensor is a view of, so that every other view of it is compared too."""
    storage = tensor.detach().untyped_storage()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (storage.nbytes() // tensor.element_size(),))
