"""``python -m bench generated``: all the text that is generated for the cases, to hold a refactoring against.

A change that moves code may not change a program. For each case the programs' sources, the sources of generated
kernels, the StableHLO that libtpu would compile (Mosaic kernels inside) and what each pass said it did are written to a
file of JSON; ``--against`` compares with the file of another commit. Nothing is compiled for a chip.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jax._src.interpreters import mlir
from jax._src.lib import tpu
from jax._src.lib.mlir import ir

from bench import fusion_cases, fusion_models, models, zoo
from bench.kernels import KERNELS
from tpu_lowering import compat
from tpu_lowering.backend import helion_tpu
from tpu_lowering.ir import chips
from tpu_lowering.kernels import function_values
from tpu_lowering.runtime.aot.capture import TpuRuntime

TARGETS = ("tpu7x", "v5e")
"""Of ``bench.TARGETS`` two that differ in VMEM and in the size of matrix units: blocks are planned by these."""
ZOO = ("llama", "bert", "unet")

Run = Callable[[Callable[..., Any]], Any]
"""Runs a case with a backend."""


class Actions:
    """An observer that keeps what every pass said, without the program's number."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, program: str, stage: str, module: Any, seconds: float) -> None:
        pass

    def acted(self, program: str, name: str, actions: Sequence[Any]) -> None:
        kind = program.rpartition("_")[0]
        self.lines += [f"{kind} {name}: {' '.join(str(action).split())}" for action in actions]

    def compiled(self, program: Any, source: Any) -> None:
        pass


def forward(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Run:
    """A case without gradients."""

    def run(backend: Callable[..., Any]) -> None:
        with torch.no_grad():
            torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*args, **(kwargs or {}))

    return run


def training(name: str) -> Run:
    """A training step of a model of ``bench.fusion_models``."""

    def run(backend: Callable[..., Any]) -> None:
        model, tokens = fusion_models.MODELS[name]()
        model = model.to(torch.bfloat16)
        loss = torch.compile(
            lambda model: model(input_ids=tokens, labels=tokens).loss, backend=backend, fullgraph=True, dynamic=False
        )
        loss(model).backward()

    return run


def of_zoo(name: str, step: str) -> Run:
    """A model of the suite: its forward, or a training step."""

    def run(backend: Callable[..., Any]) -> None:
        torch.manual_seed(0)
        chosen = zoo.MODELS[name]
        model, inputs = chosen.build(), chosen.inputs()
        if step == "forward":
            return forward(lambda **given: chosen.result(model(**given)), (), inputs)(backend)
        loss = torch.compile(
            lambda model: chosen.step(model, inputs)[0], backend=backend, fullgraph=True, dynamic=False
        )
        return loss(model).backward()

    return run


def cases() -> dict[str, Run]:
    """Every case by its name."""
    found = {f"kernel {case.name}": forward(case.model, case.example(False)) for case in KERNELS}
    found |= {f"fusion {case.name}": forward(case.fn, case.example()) for case in fusion_cases.CASES}
    found |= {name: training(name) for name in fusion_models.MODELS}
    found |= {f"{name}, {step}": of_zoo(name, step) for name in ZOO for step in ("forward", "training step")}
    found["decode step"] = forward(*models.decode_step())
    return found


def generated(run: Run, target: str) -> dict[str, Any]:
    """What is generated for one case."""
    runtime, actions = TpuRuntime(chips.find(target)), Actions()
    backend = functools.partial(helion_tpu, runtime=runtime, observers=(actions,))
    with compat.cold_dynamo(), function_values.allowed():
        run(backend)
    return {
        "actions": actions.lines,
        "programs": [_without_name(one.source.text, one.program.name) for one in runtime.captured],
        "kernels": [getattr(kernel, "text", "") for one in runtime.captured for kernel in one.source.kernels.values()],
        "stablehlo": [_digest(without_locations(one.stablehlo.decode())) for one in runtime.captured],
    }


def without_locations(stablehlo: str) -> str:
    """StableHLO without the files and lines of code it was made by, and with each Mosaic kernel as text, in place of
    bytecode that holds them too."""
    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    tpu.register_dialect(context)

    def as_text(found: re.Match[str]) -> str:
        with context:
            return ir.Module.parse(base64.b64decode(found[1])).operation.get_asm(enable_debug_info=False)

    lines = [line for line in stablehlo.splitlines() if not line.startswith("#loc")]
    plain = "\n".join(re.sub(r" ?loc\(.*?\)$| loc\(#loc\d*\)", "", line) for line in lines)
    return re.sub(r"(?<=\\22body\\22: \\22)([A-Za-z0-9+/=]+)(?=\\22)", as_text, plain)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_name(text: str, name: str) -> str:
    """A program's source without the number that depends on what was compiled before."""
    return text.replace(name, "program")


def main(out: pathlib.Path, against: pathlib.Path | None, names: Sequence[str]) -> int:
    """Writes the file; compares; gives the exit code."""
    texts: dict[str, Any] = {}
    for name, run in cases().items():
        if not names or any(wanted in name for wanted in names):
            for target in TARGETS:
                texts[f"{name} ({target})"] = generated(run, target)
                print(f"{name} ({target})", flush=True)
    out.write_text(json.dumps(texts, indent=1))
    digest = _digest(out.read_text())
    kernels = sum(bool(text) for entry in texts.values() for text in entry["kernels"])
    programs = sum(len(entry["programs"]) for entry in texts.values())
    print(f"{len(texts)} cases, {programs} programs, {kernels} generated kernels; digest {digest}")
    return 0 if against is None else compare(texts, json.loads(against.read_text()))


def compare(texts: dict[str, Any], before: dict[str, Any]) -> int:
    """Prints which cases differ, and in what; 1 if any does."""
    differing = {
        name: [part for part in entry if entry[part] != before.get(name, {}).get(part)] for name, entry in texts.items()
    }
    differing = {name: parts for name, parts in differing.items() if parts}
    for name, parts in differing.items():
        print(f"differs: {name}: {', '.join(parts)}")
    print(f"{len(texts) - len(differing)} of {len(texts)} equal")
    return 1 if differing else 0
