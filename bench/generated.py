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
from collections.abc import Sequence
from typing import Any

from jax._src.interpreters import mlir
from jax._src.lib import tpu
from jax._src.lib.mlir import ir

from bench import fusion_cases, fusion_models, models
from bench.against_xla import FUSE, Capture, of_function, of_kernel, of_zoo
from bench.kernels import KERNELS
from tpu_lowering.ir import chips

TARGETS = ("tpu7x", "v5e")
"""Of ``bench.TARGETS`` two that differ in VMEM and in the size of matrix units: blocks are planned by these."""
ZOO = ("llama", "bert", "unet")


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


def cases() -> dict[str, Capture]:
    """Every case by its name."""
    found = {f"kernel {case.name}": of_kernel(case.name) for case in KERNELS}
    found |= {f"fusion {case.name}": of_function(case.fn, case.example) for case in fusion_cases.CASES}
    found |= {name: functools.partial(fusion_models.captured_step, name) for name in fusion_models.MODELS}
    for name in ZOO:
        found |= {f"{name}, forward": of_zoo(name, False), f"{name}, training step": of_zoo(name, True)}
    step, args = models.decode_step()
    return {**found, "decode step": of_function(step, lambda: args)}


def generated(capture: Capture, target: str) -> dict[str, Any]:
    """What is generated for one case."""
    actions = Actions()
    captured = capture(chips.find(target), FUSE["fused"], (actions,))
    return {
        "actions": actions.lines,
        "programs": [_without_name(one.source.text, one.program.name) for one in captured],
        "kernels": [getattr(kernel, "text", "") for one in captured for kernel in one.source.kernels.values()],
        "stablehlo": [_digest(without_locations(one.stablehlo.decode())) for one in captured],
    }


def without_locations(stablehlo: str) -> str:
    """StableHLO without the files and lines of code it was made by, and with each Mosaic kernel as text, in place of
    bytecode that holds them too."""
    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    tpu.register_dialect(context)

    def as_text(module: str | bytes) -> str:
        with context:
            return ir.Module.parse(module).operation.get_asm(enable_debug_info=False)

    body = r"(?<=\\22body\\22: \\22)([A-Za-z0-9+/=]+)(?=\\22)"
    return re.sub(body, lambda found: as_text(base64.b64decode(found[1])), as_text(stablehlo))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_name(text: str, name: str) -> str:
    """A program's source without the number that depends on what was compiled before."""
    return text.replace(name, "program")


def main(out: pathlib.Path, against: pathlib.Path | None, names: Sequence[str]) -> int:
    """Writes the file; compares; gives the exit code."""
    texts: dict[str, Any] = {}
    for name, capture in cases().items():
        if not names or any(wanted in name for wanted in names):
            for target in TARGETS:
                texts[f"{name} ({target})"] = generated(capture, target)
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
