"""The commands of ``python -m tpu_lowering``."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import time
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tpu_lowering import errors, releases
from tpu_lowering.ir import chips
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.options import Options
from tpu_lowering.pipeline import Pipeline
from tpu_lowering.report import bisect as bisect_
from tpu_lowering.report import doctor as doctor_
from tpu_lowering.report import plan as plan_
from tpu_lowering.report import plan_tables
from tpu_lowering.report import tune as tune_
from tpu_lowering.report.explain import explain as explain_function
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
    return 0 if doctor_.print_findings(doctor_.examine()) else 1


def explain(target: str, as_json: bool) -> int:
    """Reports on ``FILE:FUNCTION``.

    Raises:
        TpuLoweringError: TL106 if there is no such file, function or inputs.
    """
    function, inputs = _function_and_inputs(target)
    report = explain_function(function, *inputs)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        report.print()
    return 0


def pipeline(chip: str) -> int:
    """Prints the pipeline of a program as text, and what is legal after each step.

    Args:
        chip: a TPU, or a topology; "" for the CPU.

    Raises:
        TpuLoweringError: TL107 for an unknown chip.
    """
    found = Pipeline.of(Options(), chips.find(chip) if chip else chips.CPU)
    console = Console(soft_wrap=True)
    console.print(str(found))
    table = Table("stage", "what may be in the graph after it", box=None)
    for stage in found.stages:
        table.add_row(stage.name, "; ".join(stage.legal.names()) if isinstance(stage, Step) else "normal")
    console.print(table)
    return 0


def bisect(target: str, passes: str, fuse: str) -> int:
    """Finds the first stage of ``FILE:FUNCTION``'s programs that changes a result, on the CPU.

    Args:
        target: the function.
        passes: text of a pipeline; "" for the default one.
        fuse: as ``Options.fuse``.

    Returns:
        1 if a result is not as it should be.

    Raises:
        TpuLoweringError: TL106 if there is no such file, function or inputs, TL113 for a text that is no pipeline.
    """
    function, inputs = _function_and_inputs(target)
    found = bisect_.bisect(function, inputs, options={"fuse": fuse, "passes": passes or True})
    bisect_.show(found, Console())
    return 1 if found.differences or found.equals_eager is False else 0


def tune(target: str, chip: str, seconds: int, cache: str, configs: bool) -> int:
    """Chooses the forms of ``FILE:FUNCTION``'s regions and kernels with the TPU compiler.

    Args:
        target: the function.
        chip: a TPU, or a topology.
        seconds: for how long forms are compiled.
        cache: folder that keeps what the compiler says; "" for the one that the environment names, or none.
        configs: whether kernels without a config of their own may be given another.

    Raises:
        TpuLoweringError: TL106 if there is no such file, function or inputs, TL107 for an unknown chip, TL108 without
            libtpu.
    """
    chosen = chips.find(chip)
    function, inputs = _function_and_inputs(target)
    given: dict[str, Any] = {"tune": "configs" if configs else True, "tune_seconds": seconds}
    options = Options.create({**given, "cache": cache} if cache else given)
    console = Console()
    tune_.show(tune_.tune(function, inputs, chosen, {**given, "cache": options.cache}), chosen, console)
    kept = f"Kept in {options.cache}." if options.cache else "Not kept: name a folder with --cache."
    console.print(kept, soft_wrap=True)
    return 0


def plan(target: str, chip: str, counts: str, best: int, fuse: str) -> int:
    """Says how much memory and traffic the step of ``FILE:FUNCTION`` takes on many meshes.

    Args:
        target: a function of a mesh and of one size for each axis; see ``plan.plan``.
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
    path, _, name = target.rpartition(":")
    make = _attribute(_load(pathlib.Path(path), target), name, target)
    found = plan_.plan(make, chosen, numbers, best, fuse)
    plan_tables.show(found, Console())
    return 0 if found.holds else 1


def _function_and_inputs(target: str) -> tuple[Any, tuple[Any, ...]]:
    """A file's function, and what its ``example_inputs`` gives."""
    path, _, name = target.rpartition(":")
    module = _load(pathlib.Path(path), target)
    function = _attribute(module, name, target)
    try:
        inputs = _attribute(module, "example_inputs", target)()
    except errors.TpuLoweringError:
        raise
    except Exception as error:
        raise _no_target(target, f"{type(error).__name__} from example_inputs(): {first_line(error)}") from error
    return function, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _load(path: pathlib.Path, target: str) -> ModuleType:
    if not path.is_file():
        raise _no_target(target, f"no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise _no_target(target, f"no Python file {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _no_target(target, f"{type(error).__name__} when it was run: {first_line(error)}") from error
    return module


def _attribute(module: ModuleType, name: str, target: str) -> Any:
    if not callable(getattr(module, name, None)):
        raise _no_target(target, f"no function {name!r} in {module.__name__}")
    return getattr(module, name)


def _no_target(target: str, got: str) -> errors.TpuLoweringError:
    return errors.refuse(
        "TL106",
        repr(target),
        f"expected FILE:FUNCTION, with example_inputs() in FILE to give FUNCTION's arguments, got {got}",
        "python -m tpu_lowering explain model.py:forward",
    )
