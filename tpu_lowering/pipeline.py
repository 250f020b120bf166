"""The path from a captured graph to a program, as data. Read this file first.

=============  ============================================================================================
capture        Dynamo's graph, through AOTAutograd, to a forward and a backward graph of ATen operators
NORMALISE      sizes become numbers; every call form of a kernel becomes ``kernel_call``; random operators become
               draws from a key; views become boxes
PASSES         the rewrites, each a value with a name; the only writers of a normalised graph
lower          every node gets its row in the lowering table
codegen        the program as readable Python over JAX
runtime        compiled once, called with the user's tensors
=============  ============================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import fx

from tpu_lowering import errors
from tpu_lowering.analyse.padding.roundable_sizes import Padding
from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.choose.choices import Answer
from tpu_lowering.fuse.choose.choose_launches import ChooseLaunches
from tpu_lowering.fuse.fuse_around_kernels import FuseAroundKernels
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.fuse.fuse_rows import FuseRows
from tpu_lowering.ir import graphs, interpreter, invariants, regions
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.programs import Program, Signature
from tpu_lowering.lower import layout
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
from tpu_lowering.normalise.aliases import APART, Sharing
from tpu_lowering.normalise.mask_padding import mask_padding
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


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of normalising: a function that edits a module in place, and what holds after it.

    It is given the modules of a graph's regions too, each in turn, those inside others first.
    """

    name: str
    run: Callable[[fx.GraphModule, Options], None]
    then: tuple[invariants.Invariant, ...]


def _drop_checks(module: fx.GraphModule, options: Options) -> None:
    effects.drop_checks(module.graph)
    effects.refuse_writes(module.graph)


def _define_allocations(module: fx.GraphModule, options: Options) -> None:
    if allocations.fills_allocations():
        allocations.define_allocations(module.graph)


NORMALISE: tuple[Step, ...] = (
    Step("drop_checks", _drop_checks, invariants.SPECIALISED),
    Step(
        "call_control_flow",
        lambda module, _: control_flow.normalise_control_flow(module.graph),
        invariants.SPECIALISED,
    ),
    Step("inline_helion_kernels", lambda module, _: helion.normalise_helion(module), invariants.SPECIALISED),
    Step(
        "make_draws_explicit",
        lambda module, options: randomness.make_draws_explicit(module, options.random),
        invariants.SPECIALISED,
    ),
    Step(
        "call_registered_kernels",
        lambda module, _: functionalized.normalise_operators(module.graph),
        invariants.SPECIALISED,
    ),
    Step("make_views_explicit", lambda module, _: views.normalise_views(module.graph), invariants.NORMAL),
    Step("define_allocations", _define_allocations, invariants.NORMAL),
)

PASSES: tuple[Pass, ...] = (
    SimplifyViews(),
    ReturnFreshBuffers(),
    DropOverwrittenValues(),
    AssembleWrites(),
    DropDeadAllocations(),
    UnflattenKernels(),
)


def passes(options: Options, chip: Chip, tell: Callable[[Answer], None] | None = None) -> tuple[Pass, ...]:
    """The passes that a program for a device goes through; "" is the CPU. ``tell`` is told what was chosen by what
    the TPU compiler says."""
    if not options.passes:
        return ()
    chooser = None
    if chip.is_tpu and (options.tune or options.cache):
        store = Store.of(options)
        compiles, configs = options.tune is not False, options.tune == "configs"
        seconds = float(options.tune_seconds)
        chooser = CompilerChooser(chip, store, compiles, configs, seconds, tell)
    launches: tuple[Pass, ...] = (ChooseLaunches(chooser),) if chip.is_tpu else ()
    fusion: tuple[Pass, ...] = (FuseAttention(), FuseAroundKernels(), FuseRows(chooser))
    return PASSES + launches + (fusion if fuses(options, chip) else ())


def fuses(options: Options, chip: Chip) -> bool:
    """Whether kernels are made of operators, for a device."""
    return options.passes and (options.fuse == "always" or (options.fuse == "tpu" and chip.is_tpu))


class Observer(Protocol):
    """What watches a compilation: ``explain``, dumps and logs. Passes know nothing of them."""

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        """After a stage: "captured", "specialised", a step's or a pass's name, "lowered"."""

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        """After a pass: what it did."""

    def compiled(self, program: Program, source: Source) -> None:
        """After code generation."""


@runtime_checkable
class HearsAnswers(Protocol):
    """An observer that is told, too, what the TPU compiler says of forms, and which of them was taken."""

    def answered(self, program: str, answer: Answer) -> None:
        """After each question."""


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        for observer in self.observers:
            observer.stage(program, stage, module, seconds)

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        for observer in self.observers:
            observer.acted(program, name, actions)

    def compiled(self, program: Program, source: Source) -> None:
        for observer in self.observers:
            observer.compiled(program, source)

    def answered(self, program: str, answer: Answer) -> None:
        for observer in self.observers:
            if isinstance(observer, HearsAnswers):
                observer.answered(program, answer)


def run(
    name: str,
    captured: fx.GraphModule,
    arguments: Sequence[Any],
    options: Options,
    observer: Observer,
    chip: Chip = CPU,
    sharing: Sharing = APART,
    padding: Padding | None = None,
) -> Program:
    """Takes a captured graph to a program, for the sizes of given arguments.

    Args:
        name: the program's name.
        captured: graph from AOTAutograd; stays as it is.
        arguments: tensors (real or fake) and integers that the program will be called with.
        options: what the user chose.
        observer: told of every stage.
        chip: what it is for.
        sharing: what is known of the memory of its results.
        padding: how the graph runs with arguments of rounded sizes; None if their sizes are the true ones.

    Raises:
        TpuLoweringError: with any code of 2xx, 3xx and 4xx.
    """
    observer.stage(name, "captured", captured, 0.0)
    began = time.perf_counter()
    module = specialise.specialise(captured, arguments, chip)
    numbers: tuple[Any, ...] = ()
    if padding is not None:
        numbers = mask_padding(module, padding, specialise.sizes_of(captured.graph, arguments))
    edge = signature.separate_signature(module.graph, sharing, options.verify)
    invariants.check(module.graph, invariants.SPECIALISED, "specialised")
    observer.stage(name, "specialised", module, time.perf_counter() - began)
    for step in NORMALISE:
        began = time.perf_counter()
        for part in regions.modules(module):
            step.run(part, options)
            invariants.check(part.graph, step.then, step.name)
        observer.stage(name, step.name, module, time.perf_counter() - began)
    calls = [call for part in regions.modules(module) for call in graphs.kernel_calls(part.graph)]
    current = tuple({graphs.kernel_of(call).is_current: None for call in calls})  # a pass may put a kernel into another
    hears = observer if isinstance(observer, HearsAnswers) else None
    tell = None if hears is None else functools.partial(hears.answered, name)
    for pass_ in passes(options, chip, tell):
        run_pass(name, pass_, module, options, observer)
    return dataclasses.replace(_lower(name, module, edge, observer), numbers=numbers, current=current)


def run_pass(name: str, pass_: Pass, module: fx.GraphModule, options: Options, observer: Observer) -> None:
    """Runs one pass, checks the graph, and with ``verify`` compares results before and after.

    Raises:
        TpuLoweringError: TL402 if the pass broke an invariant, TL401 if it changed a result.
    """
    sample = interpreter.random_arguments(module.graph, seed=0) if options.verify else []
    before = interpreter.interpret(module, sample) if options.verify else []
    began = time.perf_counter()
    parts = regions.modules(module)
    actions = [action for part in parts for action in pass_(part.graph)]
    seconds = time.perf_counter() - began
    for part in parts:
        invariants.check(part.graph, invariants.NORMAL, pass_.name)
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


def _lower(name: str, module: fx.GraphModule, edge: Signature, observer: Observer) -> Program:
    began = time.perf_counter()
    program = layout.finish(name, module, edge)
    observer.stage(name, "lowered", module, time.perf_counter() - began)
    return program
