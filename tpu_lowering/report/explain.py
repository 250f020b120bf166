"""``explain``: compiles a function, runs it once on copies of its arguments, and reports."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import aot, compat, errors, pipeline
from tpu_lowering.analyse import splits
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips, graphs, random, regions
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.operators import is_allocation, is_fill
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels import helion
from tpu_lowering.report import chip
from tpu_lowering.report.report import Draw, Remark, Report

NOTED = ("fresh", "interpreted", "moved", "unwritten", "updated", "whole")
"""Kinds of actions that, with a code, are remarks."""


class Collector:
    """An observer that gathers what a report needs."""

    def __init__(self) -> None:
        self.programs: list[str] = []
        self.calls = 0
        self.draws: list[Draw] = []
        self.before = 0
        self.made: dict[tuple[str, str], Remark] = {}
        self.fills: set[tuple[str, str]] = set()
        self.left: set[tuple[str, str]] = set()
        self.actions: list[tuple[str, Action]] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        self.seconds[stage] += seconds
        if stage == pipeline.AS_WRITTEN:
            self._as_written(program, module)

    def _as_written(self, program: str, module: fx.GraphModule) -> None:
        self.before += splits.program_count(module.graph, splits.RULES["torch_tpu"])
        for node in _nodes(module):
            if is_allocation(node) or is_fill(node):
                key = (program, node.name)
                self.made[key] = Remark(node.name, program, graphs.source_line(node), graphs.type_of(node).nbytes)
                if is_fill(node):
                    self.fills.add(key)

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        self.actions += [(program, action) for action in actions]

    def compiled(self, program: Program, source: Source) -> None:
        self.programs.append(program.name)
        self.calls += sum(graphs.is_call(node, kernel_call) for node in _nodes(program.module))
        self.draws += _draws(program)
        self.left |= {(program.name, node.name) for node in _nodes(program.module)}

    def report(self) -> Report:
        """The report of everything compiled so far."""
        removed = {key: buffer for key, buffer in self.made.items() if key not in self.left}
        fresh = [action for _, action in self.actions if action.kind == "fresh" and action.code != "TL504"]
        kept = [self._buffer(program, action) for program, action in self.actions if action.kind == "kept"]
        by_kind = {True: [b for b in kept if self._is_made(b)], False: [b for b in kept if not self._is_made(b)]}
        return Report(
            programs_before=self.before,
            programs_after=len(self.programs),
            kernel_calls=self.calls,
            allocations_removed=sum(key not in self.fills for key in removed),
            fills_removed=sum(key in self.fills for key in removed),
            bytes_saved=sum(b.nbytes for b in removed.values()) + sum(action.nbytes for action in fresh),
            removed=tuple(removed.values()),
            allocations_kept=tuple(by_kind[True]),
            aliases_kept=tuple(by_kind[False]),
            notes=tuple(self._buffer(p, a) for p, a in self.actions if a.kind in NOTED and a.code),
            programs=tuple(self.programs),
            draws=tuple(self.draws),
            seconds=dict(self.seconds),
            sizes_kept=self._of_kind("exact"),
            recompiles=self._of_kind("recompiled"),
            fused=self._of_kind("fused"),
            unfused=self._of_kind("unfused"),
            launched=self._of_kind("launched"),
        )

    def _is_made(self, buffer: Remark) -> bool:
        return (buffer.program, buffer.node) in self.made

    def _of_kind(self, kind: str) -> tuple[Remark, ...]:
        return tuple(self._buffer(program, action) for program, action in self.actions if action.kind == kind)

    @staticmethod
    def _buffer(program: str, action: Action) -> Remark:
        return Remark(
            action.node,
            program,
            action.where,
            action.nbytes,
            action.code,
            action.reason,
            errors.REMEDIES.get(action.code, ""),
        )


def _nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a graph and of its regions."""
    return [node for part in regions.modules(module) for node in part.graph.nodes]


def _draws(program: Program) -> list[Draw]:
    """Where a program draws random numbers, or is given them."""
    found: list[Draw] = []
    for node in program.module.graph.nodes:
        source = node.meta.get("drawn")
        if node.target is random.draw:
            found.append(Draw(node.name, program.name, graphs.source_line(node), str(node.args[0]), "key"))
        elif isinstance(source, random.Drawn):
            found.append(Draw(node.name, program.name, graphs.source_line(node), source.name, "torch"))
    return found


def explain(
    fn: Callable[..., Any],
    *args: Any,
    target: str | None = None,
    calls: Sequence[Sequence[Any]] = (),
    options: Mapping[str, Any] | None = None,
    mesh: Any = None,
    **kwargs: Any,
) -> Report:
    """Reports what compiling a function with ``helion_tpu`` does to its buffers.

    The function is compiled and called once. Arguments, and the function if it is a module, are copied
    first, so that mutations and running statistics do not touch the caller's; state that a plain function
    holds elsewhere changes as in any call. If a result requires a gradient, the backward is compiled too.

    Args:
        fn: a function or module, compiled or not.
        args: its arguments.
        calls: positional arguments of further calls, made one after the other with the same keyword arguments;
            ``Report.recompiles`` says why any of them compiled something again.
        options: options of the backend.
        target: a TPU, such as "tpu7x", to add the TPU compiler's view of both; see ``Report.chip``.
        mesh: the mesh of all ranks, as ``aot_compile`` takes it. Ranks of a ``fake_mesh`` run nothing, and what is
            reported is what is compiled for the target.
        kwargs: its keyword arguments.

    Returns:
        The report; ``print`` shows it, ``to_dict()`` is ready for JSON.

    Raises:
        TpuLoweringError: TL107 for an unknown target, TL112 for arguments that ``fn`` does not take, TL726 for fake
            ranks without a target, and whatever compiling raises.
    """
    for given in [args, *_calls(calls)]:
        aot.check_call("explain", compat.function_behind(fn), given, kwargs)
    if target is not None:
        chips.find(target)
    fake = compat.is_fake_group()
    if fake and target is None:
        raise errors.refuse(
            "TL726",
            "explain",
            "expected a target, as fake ranks run nothing, got none",
            'explain(model, x, target="v5e:4x4", mesh=mesh)',
        )
    report = None if fake else _compiled_and_run(fn, [args, *calls], kwargs, options)
    if target is None:
        assert report is not None
        return report
    collector = Collector()
    view = chip.view(compat.function_behind(fn), args, kwargs, target, options or {}, collector, mesh)
    on_chip = collector.report()
    report = report or on_chip
    fusion = {"fused": on_chip.fused, "unfused": on_chip.unfused, "launched": on_chip.launched}
    return dataclasses.replace(report, chip=view, **fusion)


def _calls(calls: Any) -> Sequence[Any]:
    if not isinstance(calls, (tuple, list)):
        raise errors.wrong_argument(
            "calls", f"a list of tuples of arguments, got {type(calls).__name__}", "explain(model, x, calls=[(y,)])"
        )
    return calls


def _compiled_and_run(
    fn: Callable[..., Any],
    calls: Sequence[Sequence[Any]],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None,
) -> Report:
    """The report without a chip's view."""
    from tpu_lowering.backend import helion_tpu

    collector = Collector()
    fn = compat.function_behind(fn)
    if isinstance(fn, torch.nn.Module):
        fn = copy.deepcopy(fn)
    helion.check_calls()
    backend = functools.partial(helion_tpu, observers=(collector,), options=options)
    compiled = torch.compile(fn, backend=backend)
    for args in calls:
        given_args, given_kwargs = copy.deepcopy((tuple(args), dict(kwargs)))
        results = compiled(*given_args, **given_kwargs)
        run_backward(results, fn, (given_args, given_kwargs))
    return collector.report()


def run_backward(results: Any, fn: Any, given: Any) -> Sequence[torch.Tensor | None]:
    """Gradients for every leaf that a result depends on, into no one's ``.grad``."""
    outputs = [r for r in compat.tree_leaves(results) if isinstance(r, torch.Tensor) and r.requires_grad]
    leaves = [v for v in compat.tree_leaves(given) if isinstance(v, torch.Tensor) and v.requires_grad]
    leaves += list(fn.parameters()) if isinstance(fn, torch.nn.Module) else []
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    if not outputs or not leaves:
        return ()
    return torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs], allow_unused=True)
