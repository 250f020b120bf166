"""What is compiled: one task a row of a table, in groups, each under a key that does not change."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import helion
import helion.language as hl
import jax.numpy as jnp
import torch

from bench import GROUPS, against_xla, fusion_cases, fusion_models, models, opinfo_cases, programs, zoo
from bench.blocks import block_bytes
from bench.figures import MIB, Figures, copies_of
from bench.kernels import KERNELS, KernelCase, direct
from tpu_lowering.compat import FakeTensorMode
from tpu_lowering.runtime.aot.program import TpuProgram

SEED_SHAPE = (102_400, 1024)  # float32: 400 MiB
SEED_BLOCK = (1024, 1024)  # 4 MiB; input, old output and new output, twice each, fit the VMEM of every target
GROWTH_MIB = (4, 16, 64, 100, 200, 300, 400)  # multiples of a block


@dataclasses.dataclass(frozen=True)
class Task:
    """One row.

    Attributes:
        group: a member of ``bench.GROUPS``.
        case: what is compiled.
        row: in which form.
        target: for which chip.
        note: shapes, as tables show them.
        run: compiles; returns the figures and anything else that is kept with them.
    """

    group: str
    case: str
    row: str
    target: str
    note: str
    run: Callable[[], dict[str, Any]]

    def __post_init__(self) -> None:
        parts = (self.group, self.case, self.row, self.target)
        if self.group not in GROUPS or any(not part or "/" in part for part in parts):
            raise ValueError(f"expected a known group and names without '/', got {parts}")

    @property
    def key(self) -> str:
        return f"{self.group}/{self.case}/{self.row}/{self.target}"


@helion.kernel(config=helion.Config(block_sizes=list(SEED_BLOCK)), static_shapes=True, backend="pallas")
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write `exp(x)` to `out`."""
    for tile in hl.tile(x.size()):
        out[tile] = torch.exp(x[tile])


def exp_model(x: torch.Tensor) -> torch.Tensor:
    """`exp` as destination-passing code writes it."""
    out = torch.empty_like(x)
    exp_into(x, out)
    return out


def figures(compiled: Sequence[TpuProgram]) -> dict[str, Any]:
    gc.collect()  # inputs of hundreds of megabytes, held by graphs with cycles
    return Figures.of(compiled).as_entry()


def exp_programs(row: str, shape: tuple[int, int], target: str) -> list[TpuProgram]:
    """One of the five forms of `exp`, a key of ``tables.SEED_ROWS``; the values of the input are never used."""
    args = (torch.empty(shape),)
    if row == "torch.exp":
        return programs.after(torch.exp, args, target)
    if row == "before":
        return programs.before(exp_model, args, target)
    if row == "after":
        return programs.after(exp_model, args, target)
    if row == "jax.numpy.exp":
        return programs.direct(jnp.exp, args, target)
    assert row == "pallas", f"expected a row of the seed, got {row!r}"
    vmem = programs.kernel_vmem(target)
    pallas = functools.partial(direct.pointwise, direct.exp_body, block=SEED_BLOCK, vmem_bytes=vmem)
    return programs.direct(pallas, args, target)


def seed_tasks(targets: Sequence[str]) -> Iterator[Task]:
    """`exp` of 400 MiB, in five forms."""
    for target in targets:
        for row in ("torch.exp", "before", "after", "jax.numpy.exp", "pallas"):
            run = functools.partial(run_exp, row, SEED_SHAPE, target)
            yield Task("seed", "exp", row, target, f"float32 {list(SEED_SHAPE)}", run)


def growth_tasks(targets: Sequence[str]) -> Iterator[Task]:
    """`exp` of 4 to 400 MiB with and without passes; on tpu7x alone."""
    for size in GROWTH_MIB if "tpu7x" in targets else ():
        shape = (size * MIB // 4 // 1024, 1024)
        for row in ("before", "after"):
            run = functools.partial(run_exp, row, shape, "tpu7x")
            yield Task("growth", f"{size} MiB", row, "tpu7x", f"float32 {list(shape)}", run)


def run_exp(row: str, shape: tuple[int, int], target: str) -> dict[str, Any]:
    return figures(exp_programs(row, shape, target))


def kernel_tasks(targets: Sequence[str]) -> Iterator[Task]:
    """The nine kernels before and after the passes, and written by hand."""
    for target in targets:
        for case in KERNELS:
            note = shapes(case)
            for row in ("before", "after", "direct"):
                run = functools.partial(run_kernel, case, row, target)
                yield Task("kernels", case.name, row, target, note, run)


def shapes(case: KernelCase) -> str:
    """Dtypes and shapes of a kernel's inputs."""
    with FakeTensorMode():
        inputs = case.example(False)
    return ", ".join(f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for value in inputs)


def run_kernel(case: KernelCase, row: str, target: str) -> dict[str, Any]:
    args = case.example(False)
    if row != "direct":
        compiling = programs.before if row == "before" else programs.after
        return figures(compiling(case.model, args, target))
    fn = functools.partial(direct.DIRECT[case.name], vmem_bytes=programs.kernel_vmem(target))
    return {**figures(programs.direct(fn, args, target)), "block_bytes": block_bytes(fn, programs.specs_of(args))}


def model_tasks(targets: Sequence[str]) -> Iterator[Task]:
    """The decoder's prefill before and after the passes; a decode step with its caches donated and not."""
    tokens = f"int64 [1, {models.PREFILL}]"
    cache = f"{2 * models.LAYERS} caches float32 {list(models.CACHE_SHAPE)}"
    for target in targets:
        for row in ("before", "after"):
            yield Task("models", "prefill", row, target, tokens, functools.partial(run_prefill, row, target))
        for row in ("donated", "not donated"):
            yield Task("models", "decode step", row, target, cache, functools.partial(run_decode, row, target))


def run_prefill(row: str, target: str) -> dict[str, Any]:
    compiling = programs.before if row == "before" else programs.after
    return figures(compiling(*models.prefill(), target))


def run_decode(row: str, target: str) -> dict[str, Any]:
    compiled = programs.after(*models.decode_step(), target, donate=row == "donated")
    return {**figures(compiled), "cache_copies": sum(copies_of(one, models.CACHE_SHAPE) for one in compiled)}


def fusion_tasks(targets: Sequence[str], quick: bool = False) -> Iterator[Task]:
    """Row reductions, attention and a kernel with work around it: XLA alone, and with generated kernels."""
    for target in targets:
        for case in [dataclasses.replace(case, simulate=case.simulate and not quick) for case in fusion_cases.CASES]:
            for row in ("xla", "fused"):
                run = functools.partial(run_fusion, case, row, target)
                yield Task("fusion", case.name, row, target, case.note(), run)

        for model in fusion_models.MODELS:
            for row in ("xla", "fused"):
                run = functools.partial(run_training, model, row, target)
                yield Task("fusion", model, row, target, "bfloat16; see bench/fusion_models.py", run)


def run_training(model: str, row: str, target: str) -> dict[str, Any]:
    compiled = fusion_models.training_programs(model, target, "never" if row == "xla" else "tpu")
    return fusion_figures(compiled, fusion_models.GOAL)


def fusion_figures(compiled: Sequence[TpuProgram], goal: float | None) -> dict[str, Any]:
    """Figures, and the bytes of all arguments and results."""
    least = sum(program.argument_bytes + program.output_bytes for program in compiled)
    return {**figures(compiled), "least_bytes": least, "goal": goal}


def run_fusion(case: fusion_cases.FusionCase, row: str, target: str) -> dict[str, Any]:
    args = case.example()
    compiled = programs.fusion(case.fn, args, target, "never" if row == "xla" else "tpu", case.simulate)
    return fusion_figures(compiled, case.goal)


def opinfo_tasks(targets: Sequence[str], quick: bool = False) -> Iterator[Task]:
    """Entries of torch's operator database, by XLA alone and as the estimates would have it."""
    for target in targets:
        for name in opinfo_cases.CASES:
            yield from both("opinfo", name, target, against_xla.of_operator(name, torch.float32), quick)


def suite_tasks(targets: Sequence[str], quick: bool = False) -> Iterator[Task]:
    """The nine kernels and the models of the suite, by XLA alone and as the estimates would have it."""
    for target in targets:
        for case in KERNELS:
            yield from both("suite", f"kernel {case.name}", target, against_xla.of_kernel(case.name), quick)
        for name in fusion_models.MODELS:
            name = name.partition(",")[0]
            yield from both("suite", f"{name}, forward", target, against_xla.of_model(name), quick)
        for name in zoo.MODELS:
            for step in ("forward", "training step"):
                capture = against_xla.of_zoo(name, step != "forward")
                yield from both("suite", f"{name}, {step}", target, capture, quick)


def both(group: str, case: str, target: str, capture: against_xla.Capture, quick: bool) -> Iterator[Task]:
    """The two rows of a case."""
    for row in against_xla.FUSE:
        yield Task(group, case, row, target, "", functools.partial(against_xla.run, capture, row, target, quick))


BY_GROUP: dict[str, Callable[[Sequence[str]], Iterator[Task]]] = {
    "seed": seed_tasks,
    "growth": growth_tasks,
    "kernels": kernel_tasks,
    "models": model_tasks,
    "fusion": fusion_tasks,
    "opinfo": opinfo_tasks,
    "suite": suite_tasks,
}


def tasks_of(groups: Sequence[str], targets: Sequence[str], quick: bool = False) -> list[Task]:
    """The tasks of groups for targets, in the order in which they run.

    Args:
        quick: leave out the schedules of generated kernels, which take most of the time: bytes then go by operands.

    Raises:
        ValueError: two tasks have one key.
    """
    fusing = {"fusion": fusion_tasks, "opinfo": opinfo_tasks, "suite": suite_tasks}
    by_group = {**BY_GROUP, **{group: functools.partial(made, quick=quick) for group, made in fusing.items()}}
    found = [task for group in groups for task in by_group[group](targets)]
    if len({task.key for task in found}) != len(found):
        raise ValueError("expected every task under a key of its own, got a key twice")
    return found
