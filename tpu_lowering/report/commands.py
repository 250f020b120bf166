"""The commands of ``python -m tpu_lowering``."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tpu_lowering import errors, releases
from tpu_lowering.ir import chips
from tpu_lowering.options import Options
from tpu_lowering.pipeline import Pipeline
from tpu_lowering.report import bisect as bisect_
from tpu_lowering.report import files, plan_tables
from tpu_lowering.report import plan as plan_
from tpu_lowering.report import tune as tune_
from tpu_lowering.report.checks import doctor as doctor_
from tpu_lowering.report.checks import selftest as selftest_
from tpu_lowering.report.explain import explain as explain_function
from tpu_lowering.report.progress import Progress
from tpu_lowering.runtime.aot import compiler
from tpu_lowering.stages import Step

LONGEST = 128
"""Tokens that the demo's decoder has positions for."""


def demo(length: int) -> int:
    """The demo: one forward pass of the decoder with kernels, against eager without, and the report.

    Raises:
        TpuLoweringError: TL102 for a length that the decoder does not take, TL105 for a package that is missing.
    """
    if not 1 <= length <= LONGEST:
        raise errors.refuse(
            "TL102",
            "--length",
            f"expected 1 to {LONGEST} tokens, got {length}",
            "python -m tpu_lowering demo --length 64",
        )
    for package in ("helion", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise errors.refuse(
                "TL105", package, f"expected the package {package}, got none", releases.installing(package)
            )
    from tpu_lowering.demo import decoder, project_text, text_tokens

    console = Console()
    tokens = text_tokens(project_text(), length)
    reference = decoder(kernels=False)(tokens, use_cache=False).logits
    model = decoder(kernels=True)
    compiled = torch.compile(model, backend="helion_tpu", fullgraph=True)
    console.print(
        f"Llama-style decoder, {length} bytes of the project's README, Helion kernels in destination-passing style"
    )
    with torch.no_grad():
        began = time.perf_counter()
        logits = compiled(tokens, use_cache=False).logits
        first = time.perf_counter() - began
        began = time.perf_counter()
        compiled(tokens, use_cache=False)
        again = time.perf_counter() - began
        report = explain_function(model, tokens, use_cache=False)
    difference = (logits - reference).abs().max().item()
    agree = torch.allclose(logits, reference, rtol=1e-4, atol=1e-5)
    console.print(f"first call {first:.1f} s (compiles), next call {again * 1e3:.0f} ms, on {_cpu()}")
    console.print(
        f"logits against eager: largest difference {difference:.1e}, largest logit {reference.abs().max().item():.2f}: "
        + ("[green]equal within float32 rounding[/]" if agree else "[red]NOT equal[/]")
    )
    report.print(console)
    return 0 if agree else 1


def _cpu() -> str:
    return f"the CPU ({torch.get_num_threads()} threads); kernels run as plain JAX"


def doctor() -> int:
    with Progress() as progress:
        found = doctor_.examine(progress.says)
    return 0 if doctor_.print_findings(found) else 1


def selftest(device: str, target: str | None, out: str) -> int:
    """Tries kernels, a model, a training step and a cache on a device.

    Args:
        device: of JAX's, such as "tpu:0"; "" for the CPU.
        target: the chip to compare with; None for the device's own, "" for none.
        out: a file for the text, or "".

    Returns:
        1 if something failed or differs from eager.

    Raises:
        TpuLoweringError: TL104 for a device that is not there, TL107 for an unknown target.
    """
    outcomes = selftest_.run(device, target)
    if out:
        pathlib.Path(out).write_text(selftest_.text(outcomes, device) + "\n")
    return 0 if selftest_.show(outcomes, device, Console()) else 1


def _given(function: str) -> files.Given:
    """``FILE:FUNCTION`` and its arguments; a line says that the file runs, which may take as long as its models."""
    with Progress() as progress:
        progress.says(f"runs {function.rpartition(':')[0]}")
        return files.given(function)


def explain(
    function: str,
    target: str,
    options: Sequence[tuple[str, Any]],
    no_grad: bool,
    as_json: bool,
    html: str,
    trace: str,
) -> int:
    """Reports on ``FILE:FUNCTION``, or says what a code means.

    Args:
        function: the function, or a code.
        target: a TPU, or "".
        options: of the backend, by name.
        no_grad: whether gradients are off.
        as_json: whether the report is printed as JSON.
        html: a file for the report as a page, or "".
        trace: a file for the target's static schedule as a timeline, or "".

    Raises:
        TpuLoweringError: TL106 if there is no such file, function or inputs, TL107 for an unknown target, TL112 for a
            code that there is not or a trace without a target, and what the target refuses, if a trace was asked for.
    """
    if re.fullmatch(r"TL\d+", function, re.IGNORECASE):
        print(errors.page(function).rstrip())
        return 0
    if trace and not target:
        raise errors.wrong_argument(
            "--trace", "a target whose schedule it shows, got none", f"--target tpu7x --trace {trace}"
        )
    given = _given(function)
    with torch.set_grad_enabled(not no_grad):
        report = explain_function(
            given.function, *given.args, target=target or None, options=dict(options), **given.kwargs
        )
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        report.print()
    if html:
        report.save(html)
        print(f"written: {html}", file=sys.stderr)
    if trace and report.chip is not None:
        report.chip.trace(trace)
        print(f"written: {trace}", file=sys.stderr)
    elif trace:
        (refused,) = report.refused
        raise errors.refuse(refused.code, refused.node, refused.reason, refused.remedy, refused.where)
    return 0


def pipeline(target: str) -> int:
    """Prints the pipeline of a program as text, and what is legal after each step.

    Args:
        target: a TPU, or a topology; "" for the CPU.

    Raises:
        TpuLoweringError: TL107 for an unknown chip.
    """
    found = Pipeline.of(Options(), chips.find(target) if target else chips.CPU)
    console = Console(soft_wrap=True)
    console.print(str(found))
    table = Table("stage", "what may be in the graph after it", box=None)
    for stage in found.stages:
        table.add_row(stage.name, "; ".join(stage.legal.names()) if isinstance(stage, Step) else "normal")
    console.print(table)
    return 0


def bisect(function: str, passes: str, fuse: str) -> int:
    """Finds the first stage of ``FILE:FUNCTION``'s programs that changes a result, on the CPU.

    Args:
        function: the function.
        passes: text of a pipeline; "" for the default one.
        fuse: as ``Options.fuse``.

    Returns:
        1 if a result is not as it should be.

    Raises:
        TpuLoweringError: TL106 if there is no such file, function or inputs, TL113 for a text that is no pipeline.
    """
    given = _given(function)
    with Progress() as progress:
        progress.says("compiles, runs and compares")
        found = bisect_.bisect(given.with_arguments(), given.args, options={"fuse": fuse, "passes": passes or True})
    bisect_.show(found, Console())
    return 1 if found.differences or found.equals_eager is False else 0


def tune(function: str, chip: str, seconds: int, cache: str, configs: bool) -> int:
    """Chooses the forms of ``FILE:FUNCTION``'s regions and kernels with the TPU compiler.

    Args:
        function: the function.
        chip: a TPU, or a topology.
        seconds: for how long forms are compiled.
        cache: folder that keeps what the compiler says; "" for the one that the environment names, or none.
        configs: whether kernels without a config of their own may be given another.

    Raises:
        TpuLoweringError: TL106 if there is no such file, function or inputs, TL107 for an unknown chip, TL108 without
            libtpu.
    """
    chosen = chips.find(chip)
    found = _given(function)
    given: dict[str, Any] = {"tune": "configs" if configs else True, "tune_seconds": seconds}
    options = Options.create({**given, "cache": cache} if cache else given)
    console = Console()
    with Progress() as progress:
        asked = {**given, "cache": options.cache}
        answers = tune_.tune(found.with_arguments(), found.args, chosen, asked, (progress,))
    tune_.show(answers, chosen, console)
    kept = f"Kept in {options.cache}." if options.cache else "Not kept: name a folder with --cache."
    console.print(kept, soft_wrap=True)
    return 0


def plan(function: str, chip: str, counts: str, best: int, fuse: str) -> int:
    """Says how much memory and traffic the step of ``FILE:FUNCTION`` takes on many meshes.

    Args:
        function: a function of a mesh and of one size for each axis; see ``plan.plan``.
        chip: a TPU.
        counts: numbers of chips, "8..64" for 8, 16, 32 and 64.
        best: how many meshes to print for each.
        fuse: as ``Options.fuse``.

    Returns:
        1 if the model misses a mesh that was compiled and that it was not fitted to.

    Raises:
        TpuLoweringError: TL106 if there is no such file or function, TL107 for an unknown chip, TL108 without libtpu,
            TL112 for other counts, TL727.
    """
    chosen = chips.find(chip)
    numbers = plan_.counts_of(counts)
    compiler.require_libtpu()
    path, _, name = function.rpartition(":")
    make = files.attribute(files.load(pathlib.Path(path), function), name, function)
    with Progress() as progress:
        progress.says(f"libtpu compiles for {chosen.name}")
        found = plan_.plan(make, chosen, numbers, best, fuse)
    plan_tables.show(found, Console())
    return 0 if found.holds else 1
