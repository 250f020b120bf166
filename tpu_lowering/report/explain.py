"""``explain``: compiles a function, runs it once on copies of its arguments, and reports."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tpu_lowering import aot, compat, errors, offenders, pipeline
from tpu_lowering.capture import refusals
from tpu_lowering.ir import chips
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.kernels import helion
from tpu_lowering.observers import Observers
from tpu_lowering.report import chip
from tpu_lowering.report.collector import Collector, breaks
from tpu_lowering.report.progress import Progress
from tpu_lowering.report.report import Report


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
    with Progress() as progress:
        found = None if fake else _compiled_and_run(fn, [args, *calls], kwargs, options, progress)
        if target is not None:
            found = _with_chip(fn, (args, kwargs), target, options, mesh, found, progress)
    assert found is not None
    report = found
    compat.trace_artifact("tpu_lowering_report", "json", lambda: json.dumps(report.to_dict(), indent=1))
    return report


def _with_chip(
    fn: Callable[..., Any],
    given: tuple[Sequence[Any], Mapping[str, Any]],
    target: str,
    options: Mapping[str, Any] | None,
    mesh: Any,
    report: Report | None,
    progress: Progress,
) -> Report:
    """The report with the chip's view; where there can be none, with a remark that says why.

    Raises:
        TpuLoweringError: what the chip's part refuses, if there is no other report.
    """
    collector, function = Collector(), compat.function_behind(fn)
    try:
        observer = Observers([collector, progress])
        view = chip.view(function, *given, target, options or {}, observer, mesh, progress.says)
    except errors.TpuLoweringError as error:
        if report is None:
            raise
        return dataclasses.replace(report, refused=(_refused(error.refusal, target, place_of(function)),))
    on_chip = collector.report()
    report = report or on_chip
    of_chip = ("fused", "unfused", "launched", "graphs")
    return dataclasses.replace(report, chip=view, **{name: getattr(on_chip, name) for name in of_chip})


def _refused(refusal: errors.Refusal, target: str, function: str) -> Remark:
    """The remark on a refusal of the chip's part. ``function`` is a place."""
    if refusal.code == "TL117":
        reason = f"a program for {target} is one graph, and Dynamo leaves it: {refusal.subject}"
        where = refusal.where or function
        return Remark("the chip's view", target, where, 0, "TL517", reason, errors.REMEDIES["TL517"])
    reason = f"{errors.CODES[refusal.code]}: {refusal.subject}: {refusal.reason}"
    return Remark(refusal.subject, target, refusal.where or function, 0, refusal.code, reason, refusal.remedy)


def place_of(function: Any) -> str:
    """Where a function or module is defined, ``file.py:line in function``."""
    code = offenders.function_of(function)
    try:
        file, line = inspect.getsourcefile(code) or "", inspect.getsourcelines(code)[1]
    except (OSError, TypeError):
        return offenders.name_of(function)
    return f"{os.path.basename(file)}:{line} in {getattr(code, '__name__', 'forward')}"


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
    progress: Progress,
) -> Report:
    """The report without a chip's view."""
    from tpu_lowering.backend import helion_tpu

    collector = Collector()
    fn = compat.function_behind(fn)
    if isinstance(fn, torch.nn.Module):
        fn = copy.deepcopy(fn)
    helion.check_calls()
    backend = functools.partial(helion_tpu, observers=(collector, progress), options=options)
    compiled = compat.compiled_apart(fn, backend)
    with compat.watched_compilations() as watched, refusals.unwrapped():
        for args in calls:
            progress.says("Dynamo captures, and the function runs")
            given_args, given_kwargs = copy.deepcopy((tuple(args), dict(kwargs)))
            results = compiled(*given_args, **given_kwargs)
            progress.says("the backward")
            run_backward(results, fn, (given_args, given_kwargs))
    return dataclasses.replace(
        collector.report(),
        graph_breaks=breaks(watched.breaks, place_of(fn)),
        compile_seconds=_by_whom(watched, collector.seconds),
    )


def _by_whom(watched: compat.Watched, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a compilation, by what spent them. What is compiled for further sizes, Dynamo does not see."""
    xla = seconds.get(pipeline.FINISH[-1].name, 0.0)
    ours = sum(seconds.values()) - xla
    return {
        "Dynamo": watched.dynamo_seconds,
        "AOTAutograd": max(0.0, watched.backend_seconds - ours - xla),
        "tpu_lowering": ours,
        "XLA": xla,
    }


def run_backward(results: Any, fn: Any, given: Any) -> Sequence[torch.Tensor | None]:
    """Gradients for every leaf that a result depends on, into no one's ``.grad``: arguments, parameters of a module,
    and what a function holds otherwise, in a closure or a global name, those in the order of their identities."""
    outputs = [r for r in compat.tree_leaves(results) if isinstance(r, torch.Tensor) and r.requires_grad]
    known = [v for v in compat.tree_leaves(given) if isinstance(v, torch.Tensor)]
    known += list(fn.parameters()) if isinstance(fn, torch.nn.Module) else []
    named = {id(leaf) for leaf in known}
    others = [leaf for leaf in _leaves_behind(outputs) if id(leaf) not in named]
    leaves = [leaf for leaf in [*known, *sorted(others, key=id)] if leaf.requires_grad]
    if not outputs or not leaves:
        return ()
    return torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs], allow_unused=True)


def _leaves_behind(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The leaves that autograd's graph ends at."""
    found: dict[int, torch.Tensor] = {}
    pending: list[Any] = [output.grad_fn for output in outputs]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of a node that accumulates into it
        if isinstance(leaf, torch.Tensor):
            found[id(leaf)] = leaf
        pending += [next_ for next_, _ in node.next_functions]
    return list(found.values())
