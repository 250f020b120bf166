"""The path from a captured graph to an executable, as a value. Read this file first.

``Pipeline.of(options, chip)`` is the path for a program; ``str`` of it is a text that ``Pipeline.parse`` reads::

    specialise,mask_padding,separate_signature,          sizes become numbers; mutated arguments become results
    drop_checks,call_control_flow,...,define_allocations,              every call form becomes one: ``NORMAL``
    simplify_views,return_fresh_buffers,...,compare_scattered,         the passes, each optional
    lower,generate,compile                               a row of the table for every node; Python over JAX; XLA

Steps always run, in their order. Between the last step of normalising and ``lower`` stand passes: each takes a normal
graph to a normal graph, so any of them can be left out, repeated or moved (``options={"passes": "..."}``).
``Step.legal`` says what may be in the graph after a step, operator by operator; after each pass it is ``NORMAL``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import gc
import time
from collections.abc import Callable, Container, Generator

from torch import fx

from tpu_lowering import errors
from tpu_lowering.codegen import source
from tpu_lowering.fuse.choose.choices import Answer
from tpu_lowering.fuse.choose.choose_launches import ChooseLaunches
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.fuse.passes import FUSION, fusion
from tpu_lowering.ir import graphs, interpreter, legal, regions
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.shardings import mesh_of
from tpu_lowering.lower.families import TABLE
from tpu_lowering.lower.precision import Precision
from tpu_lowering.lower.program import make_program
from tpu_lowering.normalise import (
    allocations,
    control_flow,
    effects,
    functionalized,
    helion,
    randomness,
    signature,
    specialise,
    views,
)
from tpu_lowering.normalise.mask_padding import mask_padding
from tpu_lowering.normalise.shard_kernels import shard_kernels
from tpu_lowering.observers import HearsAnswers, HearsStages, Observer
from tpu_lowering.options import Options
from tpu_lowering.passes.assemble_writes import AssembleWrites
from tpu_lowering.passes.base import Pass
from tpu_lowering.passes.drop_dead_allocations import DropDeadAllocations
from tpu_lowering.passes.drop_overwritten_values import DropOverwrittenValues
from tpu_lowering.passes.return_fresh_buffers import ReturnFreshBuffers
from tpu_lowering.passes.simplify_views import SimplifyViews
from tpu_lowering.passes.unflatten_kernels import UnflattenKernels
from tpu_lowering.runtime.aot.choosing import CompilerChooser
from tpu_lowering.runtime.cache.store import Store
from tpu_lowering.stages import Progress, Request, Step


def _each(edit: Callable[[fx.GraphModule, Options], None]) -> Callable[[Request, Progress], Progress]:
    """A step that edits a module in place. It is given the modules of a graph's regions too, each in turn, those inside
    others first."""

    def run(request: Request, made: Progress) -> Progress:
        for part in regions.modules(made.module):
            edit(part, request.options)
        return made

    return run


def _specialise(request: Request, made: Progress) -> Progress:
    module = specialise.specialise(request.captured, request.arguments, request.chip)
    return dataclasses.replace(made, module=module)


def _mask_padding(request: Request, made: Progress) -> Progress:
    if request.padding is None:
        return made
    sizes = specialise.sizes_of(request.captured.graph, request.arguments)
    return dataclasses.replace(made, numbers=mask_padding(made.module, request.padding, sizes))


def _separate_signature(request: Request, made: Progress) -> Progress:
    found = signature.separate_signature(made.module.graph, request.sharing, request.options.verify)
    return dataclasses.replace(made, signature=found)


def _drop_checks(module: fx.GraphModule, options: Options) -> None:
    effects.drop_checks(module.graph)
    effects.refuse_writes(module.graph)


def _watch_kernels(request: Request, made: Progress) -> Progress:
    """Before passes, which may put a kernel into another."""
    calls = [call for part in regions.modules(made.module) for call in graphs.kernel_calls(part.graph)]
    return dataclasses.replace(made, current=tuple({graphs.kernel_of(call).is_current: None for call in calls}))


def _shard_kernels(request: Request, made: Progress) -> Progress:
    """In a program that XLA partitions."""
    mesh, fuse = mesh_of(request.options), request.options.fuse
    if mesh is not None:
        parts = regions.modules(made.module)
        remarks = [action for part in parts for action in shard_kernels(part.graph, mesh)]
        if fuse == "always" or (fuse == "tpu" and request.chip.is_tpu):
            reason = f"XLA partitions the program over {mesh}, and cannot partition a generated kernel"
            remarks.append(Action("unfused", request.name, "", "TL717", reason, 0))
        request.observer.acted(request.name, "shard_kernels", remarks)
    return made


def _define_allocations(module: fx.GraphModule, options: Options) -> None:
    if allocations.fills_allocations():
        allocations.define_allocations(module.graph)


def _lower(request: Request, made: Progress) -> Progress:
    assert made.signature is not None
    program = make_program(request.name, made.module, made.signature)
    return dataclasses.replace(made, program=dataclasses.replace(program, numbers=made.numbers))


def _generate(request: Request, made: Progress) -> Progress:
    assert made.program is not None
    text = source.generate(made.program, request.options.poison, Precision.of_torch())
    request.observer.compiled(made.program, text)
    return dataclasses.replace(made, source=text)


def _compile(request: Request, made: Progress) -> Progress:
    assert made.program is not None and made.source is not None and request.runtime is not None
    request.observer.acted(request.name, "compile", request.runtime.remarks(made.program))
    return dataclasses.replace(made, runnable=request.runtime.compile(made.program, made.source))


CHECKED = legal.SPECIALISED.without(legal.targets("checks", effects.OF_NOTHING)).instead(legal.ANY_ATEN, legal.ATEN)
CONTROLLED = CHECKED.without(legal.targets("higher-order control flow", control_flow.RULES)).with_(legal.CONTROL)
INLINED = CONTROLLED.instead(legal.HIGHER_ORDER, legal.FUNCTIONALIZED).with_(legal.KERNEL_CALLS, legal.REPEATED_DRAWS)
RANDOM = legal.targets("random operators", randomness.OPERATORS)
DRAWN = (
    INLINED.without(legal.REPEATED_DRAWS, RANDOM)
    .instead(legal.NAMED_RESULTS, legal.RESULTS)
    .with_(legal.DRAWS, legal.KEYS)
)
CALLED = DRAWN.without(legal.FUNCTIONALIZED)
NORMAL = CALLED.without(legal.targets("views of memory", views.REMOVED)).with_(
    legal.BOXES, legal.CHANNELS, legal.CONTRACTIONS, legal.INTERVALS, legal.MATERIALIZED
)
"""After normalising: tensors are values, a kernel has one form of call."""
LOWERED = NORMAL.instead(legal.ATEN, legal.Operators("operators with a row of the table", TABLE.__contains__))

NORMALISE: tuple[Step, ...] = (
    Step("specialise", _specialise, legal.SPECIALISED),
    Step("mask_padding", _mask_padding, legal.SPECIALISED),
    Step("separate_signature", _separate_signature, legal.SPECIALISED),
    Step("drop_checks", _each(_drop_checks), CHECKED),
    Step("call_control_flow", _each(lambda part, _: control_flow.normalise_control_flow(part.graph)), CONTROLLED),
    Step("inline_helion_kernels", _each(lambda part, _: helion.normalise_helion(part)), INLINED),
    Step("make_draws_explicit", _each(lambda part, o: randomness.make_draws_explicit(part, o.random)), DRAWN),
    Step("call_registered_kernels", _each(lambda part, _: functionalized.normalise_operators(part.graph)), CALLED),
    Step("watch_kernels", _watch_kernels, CALLED),
    Step("make_views_explicit", _each(lambda part, _: views.normalise_views(part.graph)), NORMAL),
    Step("shard_kernels", _shard_kernels, NORMAL),
    Step("define_allocations", _each(_define_allocations), NORMAL),
)
AS_WRITTEN = NORMALISE[-1].name
"""The stage after which a graph is normal, and still as its author wrote it."""

FINISH: tuple[Step, ...] = (
    Step("lower", _lower, LOWERED),
    Step("generate", _generate, LOWERED),
    Step("compile", _compile, LOWERED),
)

BUFFERS: tuple[Pass, ...] = (
    SimplifyViews(),
    ReturnFreshBuffers(),
    DropOverwrittenValues(),
    AssembleWrites(),
    DropDeadAllocations(),
    UnflattenKernels(),
)
"""Passes of every program."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The stages of a program, in order.

    Attributes:
        passes: what stands between normalising and lowering.
        last: the name of the last stage that runs; "" for all.
    """

    passes: tuple[Pass, ...] = ()
    last: str = ""

    @classmethod
    def of(cls, options: Options, chip: Chip = CPU, tell: Callable[[Answer], None] | None = None) -> Pipeline:
        """The pipeline of a program for a chip. ``tell`` is told what was chosen by what the TPU compiler says.

        Raises:
            TpuLoweringError: TL113 for a text in ``options.passes`` that is no pipeline.
        """
        chooser = _chooser(options, chip, tell)
        if isinstance(options.passes, str):
            made = cls.parse(options.passes, chooser)
            kernels = FUSION & {pass_.name for pass_ in made.passes}
            if options.mesh and kernels:
                expected = "passes that make no kernels, because XLA would run those whole on every device of the mesh"
                raise _wrong_text(expected, ", ".join(sorted(kernels)))
            return made
        if not options.passes:
            return cls()
        launches: tuple[Pass, ...] = (ChooseLaunches(chooser),) if chip.is_tpu else ()
        wanted = options.fuse == "always" or (options.fuse == "tpu" and chip.is_tpu)
        fuses = wanted and not options.mesh  # XLA would run a generated kernel whole on every device
        return cls(BUFFERS + launches + (fusion(chooser) if fuses else ()))

    @classmethod
    def parse(cls, text: str, chooser: CompilerChooser | None = None) -> Pipeline:
        """The pipeline that a text names: all stages as ``str`` writes them, or passes alone.

        Raises:
            TpuLoweringError: TL113.
        """
        known = {pass_.name: pass_ for pass_ in (*BUFFERS, ChooseLaunches(chooser), *fusion(chooser))}
        names = [name for name in (part.strip() for part in text.split(",")) if name]
        before, after = [step.name for step in NORMALISE], [step.name for step in FINISH]
        if set(names) & {*before, *after}:
            inner = names[len(before) : len(names) - len(after)]
            if [*before, *inner, *after] != names or set(inner) & {*before, *after}:
                wanted = f"{','.join(before)},(passes),{','.join(after)}"
                raise _wrong_text(f"the steps {wanted} in this order, or passes alone", ",".join(names))
            names = inner
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise _wrong_text(f"some of the passes {', '.join(known)}", f"{name!r}; did you mean {near!r}?")
        return cls(tuple(known[name] for name in names))

    @property
    def stages(self) -> tuple[Step | Pass, ...]:
        every = (*NORMALISE, *self.passes, *FINISH)
        names = [stage.name for stage in every]
        return every[: len(names) - names[::-1].index(self.last)] if self.last else every

    def __str__(self) -> str:
        return ",".join(stage.name for stage in self.stages)

    def up_to(self, last: str) -> Pipeline:
        """The same, which stops after a stage."""
        return dataclasses.replace(self, last=last)

    def without(self, names: Container[str]) -> Pipeline:
        """The same, without the passes of some names."""
        return dataclasses.replace(self, passes=tuple(one for one in self.passes if one.name not in names))

    def run(self, request: Request) -> Progress:
        """Runs the stages.

        Raises:
            TpuLoweringError: with any code of 2xx, 3xx and 4xx; with 6xx where the runtime compiles for a TPU.
        """
        made = Progress(request.captured)
        request.observer.stage(request.name, "captured", made.module, 0.0)
        checked = legal.Checked()
        for stage in self.stages:
            collected = contextlib.nullcontext() if stage is FINISH[-1] else _uncollected()
            with collected, _heard(request, stage.name):
                if isinstance(stage, Step):
                    made = _run_step(stage, request, made, checked)
                else:
                    run_pass(request.name, stage, made.module, request.options, request.observer, checked)
        return made


def run(request: Request) -> Progress:
    """Takes a request through the pipeline of its options and its runtime; see ``Pipeline.run``."""
    hears = request.observer if isinstance(request.observer, HearsAnswers) else None
    tell = None if hears is None else functools.partial(hears.answered, request.name)
    return Pipeline.of(request.options, request.chip, tell).run(request)


def lowered(request: Request) -> Program:
    """The program of a request, for which no code is generated."""
    program = Pipeline.of(request.options, request.chip).up_to("lower").run(request).program
    assert program is not None
    return program


def fuses(options: Options, chip: Chip) -> bool:
    """Whether attention becomes kernels, for a chip."""
    return any(isinstance(pass_, FuseAttention) for pass_ in Pipeline.of(options, chip).passes)


def _chooser(options: Options, chip: Chip, tell: Callable[[Answer], None] | None) -> CompilerChooser | None:
    if not chip.is_tpu or not (options.tune or options.cache):
        return None
    store = Store.of(options)
    compiles, configs = options.tune is not False, options.tune == "configs"
    return CompilerChooser(chip, store, compiles, configs, float(options.tune_seconds), tell)


@contextlib.contextmanager
def _heard(request: Request, stage: str) -> Generator[None]:
    """A scope of a stage, of which observers hear that want to."""
    observer = request.observer
    if not isinstance(observer, HearsStages):
        yield
        return
    observer.begins(request.name, stage)
    began = time.perf_counter()
    yield
    observer.ended(request.name, stage, time.perf_counter() - began)


@contextlib.contextmanager
def _uncollected() -> Generator[None]:
    """A scope in which Python does not look for unreachable cycles. What a stage makes lives on, and grows with the
    graph: it sets off full collections, each of which walks all that torch and JAX hold, for a second or more. Those
    wait for whoever runs next. XLA's compile step, which takes minutes, is outside of it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _wrong_text(expected: str, got: str) -> errors.TpuLoweringError:
    remedy = "python -m tpu_lowering pipeline prints the text that is the default; leave passes out of it"
    return errors.refuse("TL113", "'passes'", f"expected {expected}; got {got}", remedy)


def _run_step(step: Step, request: Request, made: Progress, checked: legal.Checked) -> Progress:
    began = time.perf_counter()
    made = step.run(request, made)
    seconds = time.perf_counter() - began
    if made.source is None:  # after that the graph stays as it is
        for part in regions.modules(made.module):
            legal.check(part.graph, step.legal, step.name, checked)
        request.observer.stage(request.name, step.name, made.module, seconds)
    return made


def run_pass(
    name: str, pass_: Pass, module: fx.GraphModule, options: Options, observer: Observer, checked: legal.Checked
) -> None:
    """Runs one pass, checks the graph, and with ``verify`` compares results before and after.

    Raises:
        TpuLoweringError: TL402 if the graph is not normal after it, TL401 if it changed a result.
    """
    sample = interpreter.random_arguments(module.graph, seed=0) if options.verify else []
    before = interpreter.interpret(module, sample) if options.verify else []
    began = time.perf_counter()
    parts = regions.modules(module)
    actions = [action for part in parts for action in pass_(part.graph)]
    seconds = time.perf_counter() - began
    for part in parts:
        legal.check(part.graph, NORMAL, pass_.name, checked)
    observer.acted(name, pass_.name, actions)
    observer.stage(name, pass_.name, module, seconds)
    if options.verify:
        index = interpreter.differing(before, interpreter.interpret(module, sample))
        if index is not None:
            raise errors.refuse(
                "TL401",
                pass_.name,
                f"expected equal results before and after the pass, got another value {index} of {name}",
                "this is a bug of tpu_lowering; please report it with the output of options={'dump': 'folder'}",
            )
