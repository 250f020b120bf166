"""Choosing between the forms of a region by compiling each for the chip; what the compiler says is kept."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
from rich.console import Console
from rich.progress import Progress

from tpu_lowering import compat, errors
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse import choices
from tpu_lowering.fuse.choices import Candidates, Choice, Score
from tpu_lowering.kernels import jaxprs
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.runtime.aot import compiler
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.targets import Target
from tpu_lowering.runtime.store import Store, digest, package_digest

NO_SOURCE = Source(text="", kernels={})


@dataclasses.dataclass(eq=False)
class CompilerChooser:
    """Chooses by what libtpu's compiler says, or said in an earlier process.

    Attributes:
        target: the chip.
        store: where scores are kept; None keeps them for this process alone.
        compiles: whether forms without scores are compiled; else nothing is chosen for them.
        seconds: how long it may compile in all; regions after that are left to the default.
    """

    target: Target
    store: Store | None
    compiles: bool
    seconds: float = 600.0
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.known: dict[str, list[Score]] = {}

    def choose(self, candidates: Candidates) -> Choice | None:
        key = self._key(candidates)
        scores = self.known.get(key) or self._read(key)
        if scores is None and self.compiles and self.spent < self.seconds:
            began = time.monotonic()
            scores = self._score(candidates)
            self.spent += time.monotonic() - began
            if self.store is not None:
                self.store.write(key, json.dumps([dataclasses.asdict(score) for score in scores]).encode())
        if scores is None:
            return None
        self.known[key] = scores
        return choices.best(scores[0], scores[1:])

    def _key(self, candidates: Candidates) -> str:
        versions = [jax.__version__, compiler.libtpu_version(), package_digest()]
        texts = [candidates.plain[1].text, *(kernel.text for kernel in candidates.kernels)]
        return digest(["fusion", self.target.device_kind, *versions, *texts])

    def _read(self, key: str) -> list[Score] | None:
        found = None if self.store is None else self.store.read(key)
        return None if found is None else [Score(**score) for score in json.loads(found)]

    def _score(self, candidates: Candidates) -> list[Score]:
        """Scores of XLA's form, then of each kernel, compiled side by side."""
        program, source = candidates.plain
        specs = load.input_specs(program)
        forms: list[Callable[..., Any]] = [load.load(program, source, "mosaic")]
        forms += [kernel.form("mosaic") for kernel in candidates.kernels]
        console = Console(stderr=True)
        name = candidates.kernels[0].name
        with (
            Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
            concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        ):
            exported = [self._export(form, specs) for form in forms]  # JAX's modes are no business of threads
            bar = progress.add_task(f"{name} for {self.target.chip}", total=len(forms))
            scores = []
            for score in pool.map(self._compile, exported):
                scores.append(score)
                progress.advance(bar)
        return scores

    def _export(self, form: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]) -> bytes | str:
        """A form for the TPU; the message of what Pallas refuses."""
        try:
            with jaxprs.kernel_scope([], self.target.device_kind), compat.enable_x64(True):
                return bytes(jax.export.export(jax.jit(form), platforms=["tpu"])(*specs).serialize())
        except Exception as error:
            return first_line(error)[:200]

    def _compile(self, artifact: bytes | str) -> Score:
        if isinstance(artifact, str):
            return Score(error=artifact)
        try:
            compiled = compiler.compile_artifact(artifact, self.target, (), NO_SOURCE)
        except errors.TpuLoweringError as error:
            return Score(error=first_line(error)[:200])
        program = TpuProgram.of("region", self.target, compiled, artifact)
        return Score(program.hbm_bytes, program.schedule_cycles)
