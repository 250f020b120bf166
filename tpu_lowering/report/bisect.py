"""``python -m tpu_lowering bisect FILE:FUNCTION``: the first stage after which results are others.

The graph after each stage is run on the reference interpreter, with the arguments that the program was called with, and
compared with the graph as it was written; the program itself is the last stage. So a fault is found in one run, in a
pass, in generated code, or, where all stages agree and the function differs from eager, in capturing and normalising.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from tpu_lowering import compat, pipeline
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import arrays, graphs, interpreter
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.ir.programs import Program, Signature
from tpu_lowering.ir.random import draw
from tpu_lowering.lower.program import orders_in_memory
from tpu_lowering.options import Options
from tpu_lowering.report.explain import run_backward
from tpu_lowering.runtime.cpu import CpuRuntime

LOWERED, COMPILED = (step.name for step in (pipeline.FINISH[0], pipeline.FINISH[-1]))


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where a stage's results differ from those of the graph as it was written.

    Attributes:
        program: the program.
        stage: the stage.
        value: which of the graph's results.
        largest: the largest difference of two elements.
    """

    program: str
    stage: str
    value: int
    largest: float


@dataclasses.dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        stages: the stages of each program that were compared, in order.
        differences: for each program that has one, the first stage whose results are others.
        equals_eager: whether the function's results are eager's; None where it draws random numbers, which its code and
            eager draw from other generators than the interpreter.
    """

    stages: tuple[tuple[str, str], ...]
    differences: tuple[Difference, ...]
    equals_eager: bool | None


class _Stages:
    """An observer that keeps the graph after each stage from normalising on."""

    def __init__(self) -> None:
        self.modules: dict[str, dict[str, fx.GraphModule]] = {}

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        kept = self.modules.setdefault(program, {})
        if stage == pipeline.AS_WRITTEN or kept:
            name = stage if stage not in kept else f"{stage} (again)"
            kept[name] = graphs.copy_module(module)

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        """Reports are others' work."""

    def compiled(self, program: Program, source: Source) -> None:
        """The runtime keeps what it needs."""


class _Recording(CpuRuntime):
    """A runtime that keeps what its programs were first called with, and what they computed."""

    def __init__(self, kernels: Execution) -> None:
        super().__init__(kernels)
        self.calls: dict[str, tuple[list[Any], list[torch.Tensor]]] = {}
        self.signatures: dict[str, Signature] = {}

    def compile(self, program: Program, source: Source) -> Any:
        compiled = super().compile(program, source)
        self.signatures[program.name] = program.signature

        def run(arguments: Sequence[Any]) -> list[Any]:
            if program.name not in self.calls:
                given = program.all_arguments(arguments)
                given = [value.clone() if isinstance(value, torch.Tensor) else value for value in given]
                computed = compiled.execute([given[at] for at in program.inputs])
                self.calls[program.name] = (given, list(map(arrays.to_torch, computed)))
            return compiled(arguments)

        return run


def bisect(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Bisection:
    """Compiles a function, runs it once on copies of its arguments, and compares its stages.

    If a result requires a gradient, the backward is compared too.

    Args:
        fn: a function or module, compiled or not.
        args: its arguments: CPU tensors and other values.
        kwargs: its keyword arguments.
        options: options of the backend.

    Raises:
        TpuLoweringError: whatever compiling raises.
    """
    from tpu_lowering.backend import helion_tpu

    stages, runtime = _Stages(), _Recording(Options.create(options).cpu_kernels)
    backend = functools.partial(helion_tpu, observers=(stages,), options=options, runtime=runtime)
    state = torch.random.get_rng_state()
    compiled = _results(fn, args, kwargs or {}, lambda fn: torch.compile(fn, backend=backend))
    torch.random.set_rng_state(state)
    eager = _results(fn, args, kwargs or {}, lambda fn: fn)
    found = [_first(program, kept, runtime) for program, kept in stages.modules.items() if program in runtime.calls]
    draws = any(
        node.target is draw for kept in stages.modules.values() for node in next(iter(kept.values())).graph.nodes
    )
    return Bisection(
        tuple((program, stage) for program, kept in stages.modules.items() for stage in (*kept, COMPILED)),
        tuple(one for one in found if one is not None),
        None if draws else len(eager) == len(compiled) and interpreter.differing(eager, compiled) is None,
    )


def _results(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], made: Callable[[Any], Any]
) -> list[torch.Tensor]:
    """Results of a call on copies, what it left in its arguments, and gradients."""
    fn = compat.function_behind(fn)
    fn = copy.deepcopy(fn) if isinstance(fn, torch.nn.Module) else fn
    given = copy.deepcopy((tuple(args), dict(kwargs)))
    results = made(fn)(*given[0], **given[1])
    gradients = run_backward(results, fn, given)
    leaves = [*compat.tree_leaves(results), *compat.tree_leaves(given), *gradients]
    return [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _first(program: str, kept: Mapping[str, fx.GraphModule], runtime: _Recording) -> Difference | None:
    """The first stage of a program whose results are not those of the graph as it was written."""
    given, computed = runtime.calls[program]
    (_, written), *later = kept.items()
    expected = interpreter.interpret(written, given)
    for stage, module in later:
        if stage == LOWERED:
            expected = _in_memory_order(expected, runtime.signatures[program])
        results = interpreter.interpret(module, given)
        if (at := interpreter.differing(expected, results)) is not None:
            return _difference(program, stage, at, expected, results)
    at = None if _draws(written) else interpreter.differing(expected, computed)  # the interpreter has its own generator
    return None if at is None else _difference(program, COMPILED, at, expected, computed)


def _draws(module: fx.GraphModule) -> bool:
    return any(node.target is draw for node in module.graph.nodes)


def _in_memory_order(results: Sequence[torch.Tensor], signature: Signature) -> list[torch.Tensor]:
    """Results as a lowered graph gives them; values of mutated arguments come last, as they are."""
    orders = orders_in_memory(signature, [value.shape for value in results])
    permuted = [value if order is None else value.permute(order) for value, order in zip(results, orders, strict=False)]
    return [*permuted, *results[len(permuted) :]]


def _difference(
    program: str, stage: str, at: int, expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]
) -> Difference:
    a, b = expected[at], got[at]
    alike = a.shape == b.shape and a.numel() > 0
    largest = (a.to(torch.complex128) - b.to(torch.complex128)).abs().max().item() if alike else math.inf
    return Difference(program, stage, at, largest)


def show(found: Bisection, console: Console) -> None:
    """Prints every stage that was compared, and what was found."""
    table = Table("program", "stage", "results", box=None)
    first = {one.program: one for one in found.differences}
    done: set[str] = set()
    for program, stage in found.stages:
        one, said = first.get(program), "as written" if stage == pipeline.AS_WRITTEN else "equal"
        if program in done:
            continue
        if one is not None and one.stage == stage:
            said = f"[red]result {one.value} differs by {one.largest:.3g}[/]"
            done.add(program)
        table.add_row(program, stage, said)
    console.print(table)
    for one in found.differences:
        console.print(f"[red]{one.stage}[/] is the first stage of {one.program} that changes a result.")
    if found.differences:
        console.print("This is a bug of tpu_lowering. Leave the pass out with options={'passes': ...}, and report it.")
    elif found.equals_eager is None:
        console.print(
            "No pass changes a result. The function draws random numbers, so neither its code nor eager is compared."
        )
    elif found.equals_eager:
        console.print("[green]No stage changes a result, and the function's results are eager's.[/]")
    else:
        console.print("[red]No stage changes a result, but they are not eager's[/]: the fault is before the passes.")
