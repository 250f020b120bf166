"""Choosing between forms by compiling each for the chip; what the compiler says is kept."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.export
from rich.console import Console
from rich.progress import Progress

from tpu_lowering import compat, errors
from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.choose import choices
from tpu_lowering.fuse.choose.choices import Answer, Choice, Form, Question, Score
from tpu_lowering.ir.chips import Chip
from tpu_lowering.kernels import jaxprs
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.runtime.aot import compiler, hlo
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.traffic import traffic_by_operands
from tpu_lowering.runtime.cache.store import Store, digest, package_digest

NO_SOURCE = Source("", "", {})

FORM_SECONDS = 180.0
"""What a child may compile one form for, or simulate its schedule: a grid of too many steps takes hours."""

Scores = list[Score | None]


@dataclasses.dataclass(eq=False)
class CompilerChooser:
    """Chooses by what libtpu's compiler says, or said in an earlier process.

    Attributes:
        chip: for which.
        store: where scores are kept; None keeps them for this process alone.
        compiles: whether forms without scores are compiled; else nothing is chosen for them.
        configs: whether forms with other configs than the user's kernels have are compiled.
        seconds: how long it may compile in all: no form is begun after that.
        tell: told of every answer.
    """

    chip: Chip
    store: Store | None
    compiles: bool
    configs: bool = False
    seconds: float = 600.0
    tell: Callable[[Answer], None] | None = None
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.known: dict[str, Scores] = {}

    def choose(self, question: Question) -> Choice | None:
        key = self._key(question)
        forms = question.forms
        scores: Scores = self.known.get(key) or self._read(key) or [None for _ in forms]
        if self.compiles and (self.configs or not question.replaces_configs) and None in scores:
            self._score(question.name, forms, scores)
            if self.store is not None and any(scores):
                kept = [None if score is None else dataclasses.asdict(score) for score in scores]
                self.store.write(key, json.dumps(kept).encode())
        if scores[0] is None:
            return None
        self.known[key] = scores
        plain, kernels = (scores[0], scores[1:]) if question.has_plain else (None, scores)
        choice = choices.best(plain, kernels, self.chip)
        if self.tell is not None:
            labels = tuple(form.label for form in forms)
            self.tell(Answer(question.name, labels, tuple(scores), question.has_plain, choice))
        return choice

    def _key(self, question: Question) -> str:
        versions = [jax.__version__, compiler.libtpu_version(), package_digest()]
        labels = [form.label for form in question.forms]
        return digest(["forms", self.chip.name, *versions, *labels, *question.known_by])

    def _read(self, key: str) -> Scores | None:
        found = None if self.store is None else self.store.read(key)
        if found is None:
            return None
        return [None if score is None else Score(**score) for score in json.loads(found)]

    def _score(self, name: str, forms: Sequence[Form], scores: Scores) -> None:
        """Fills in the scores that are missing, in order, compiled side by side; none is begun when time is up."""
        began, workers = time.monotonic(), os.cpu_count() or 1
        missing = [at for at, score in enumerate(scores) if score is None]
        console = Console(stderr=True)
        with (
            Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
        ):
            bar = progress.add_task(f"{name} for {self.chip.name}", total=len(missing))
            running: dict[concurrent.futures.Future[Score], int] = {}
            while missing or running:
                if self.spent + time.monotonic() - began >= self.seconds:
                    missing.clear()
                elif missing and len(running) < workers:
                    exported = self._export(forms[missing[0]])  # JAX's modes are no business of threads
                    running[pool.submit(self._compile, exported)] = missing.pop(0)
                    continue
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    scores[running.pop(future)] = future.result()
                    progress.advance(bar)
        self.spent += time.monotonic() - began

    def _export(self, form: Form) -> bytes | str:
        """A form for the TPU; the message of what Helion or Pallas refuses."""
        try:
            function, specs = form.make()
            with jaxprs.kernel_scope([], self.chip), compat.enable_x64(True):
                return bytes(jax.export.export(jax.jit(function), platforms=["tpu"])(*specs).serialize())
        except Exception as error:
            return first_line(error)[:200]

    def _compile(self, artifact: bytes | str) -> Score:
        if isinstance(artifact, str):
            return Score(error=artifact)
        try:
            compiled = compiler.compile_artifact(artifact, self.chip, (), NO_SOURCE, seconds=FORM_SECONDS)
        except errors.TpuLoweringError as error:
            return Score(error=f"{error.code}, {error.refusal.reason}"[:200])
        program = TpuProgram.of("form", self.chip, compiled, artifact)
        module = hlo.Module.of(compiled.hlo)
        by_operands = sum(traffic.total for traffic in traffic_by_operands(module).values())
        listed = {found.name for found in program.entry_operations if found.bytes_source == "dma schedule"}
        whole = all(operation.name in listed for operation in module.entry if operation.is_kernel)
        return Score(program.hbm_bytes, program.schedule_cycles, "", by_operands, whole)
