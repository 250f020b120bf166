"""``python -m bench``: all benchmarks; ``compare A.json B.json``; ``compile_time``; ``model_compile_time``;
``long_graphs``; ``helion_examples``; ``generated``; ``cpu``; ``mesh``; ``whole_models``."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from bench import GROUPS, TARGETS
from bench.cpu import SECTIONS

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, runs, and returns the exit code."""
    given = parser().parse_args(arguments)
    if given.command == "compile_time":
        from bench import compile_time

        compile_time.main(given.rounds)
        return 0
    if given.command == "model_compile_time":
        from bench import model_compile_time

        return model_compile_time.main(given.rounds, given.models, given.folder or model_compile_time.RESULTS)
    if given.command == "long_graphs":
        from bench import long_graphs

        return long_graphs.main(given.out, given.cases, given.largest, given.xla, given.rounds)
    if given.command == "compare":
        from bench import compare

        return compare.main(given.before, given.after, given.tolerance)
    if given.command == "helion_examples":
        from bench import helion_examples

        return helion_examples.main(given.examples, given.target, given.kernels, given.missing)
    if given.command == "generated":
        from bench import generated

        return generated.main(given.out, given.against, given.cases)
    if given.command == "cpu":
        from bench.cpu import run as cpu

        return cpu.main(given.section, given.rounds, given.folder, given.cases)
    if given.command == "mesh":
        from bench import mesh

        return mesh.main(given.topologies, given.folder, given.width)
    if given.command == "whole_models":
        from bench.whole_models import layers
        from bench.whole_models import run as whole_models

        if given.layers:
            return layers.main(given.layers, given.chips[0])
        return whole_models.main(given.cases, given.chips, given.folder, given.keep_twins, given.operations)
    from bench import report, run, tasks

    chosen = tasks.tasks_of([given.only] if given.only else GROUPS, given.targets, given.quick)
    return run.main(chosen, given.force, given.folder or run.RESULTS, report.write)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compiles every benchmark for TPUs that need not be there, and writes bench/results. Tasks that "
        "are in results.json with the same package versions are skipped.",
    )
    top.add_argument("--only", choices=GROUPS, help="one group of tasks")
    top.add_argument("--targets", type=targets, default=TARGETS, help="chips, separated by commas")
    top.add_argument("--force", action="store_true", help="run tasks again that have figures: after a change of a pass")
    top.add_argument("--quick", action="store_true", help="no schedules of fusion's cases: bytes alone, by operands")
    top.add_argument("--folder", type=pathlib.Path, help="where results go (default: bench/results)")
    commands = top.add_subparsers(dest="command")
    compare = commands.add_parser("compare", help="two results.json; exit code 1 if the second is worse")
    compare.add_argument("before", type=pathlib.Path)
    compare.add_argument("after", type=pathlib.Path)
    compare.add_argument("--tolerance", type=float, default=0.01, help="growth that is no change (default 0.01: 1 %%)")
    compile_time = commands.add_parser("compile_time", help="seconds to compile chains of kernel calls")
    compile_time.add_argument("--rounds", type=int, default=3, help="repetitions; the median counts (default 3)")
    models = commands.add_parser("model_compile_time", help="seconds to compile each model, and Inductor's")
    models.add_argument("--rounds", type=int, default=3, help="measurements a side; the median counts (default 3)")
    models.add_argument("--models", nargs="*", default=(), help="names of models (default: all)")
    long_graphs = commands.add_parser("long_graphs", help="how compile time for a TPU grows with a graph's length")
    long_graphs.add_argument("--out", type=pathlib.Path, help="a file of JSON to write")
    long_graphs.add_argument("--cases", nargs="*", default=(), help="parts of names of cases (default: all)")
    long_graphs.add_argument("--largest", type=int, default=0, help="the longest graph (default: all lengths)")
    long_graphs.add_argument("--xla", type=int, nargs="*", default=(), help="layers whose decoder libtpu compiles too")
    long_graphs.add_argument("--rounds", type=int, default=1, help="measurements; the median counts (default 1)")
    examples = commands.add_parser("helion_examples", help="Helion's own examples, ours and Helion's export")
    examples.add_argument("--examples", type=pathlib.Path, required=True, help="a checkout's examples folder")
    examples.add_argument("--target", default="tpu7x", help="the chip to compile for (default tpu7x)")
    examples.add_argument("--missing", action="store_true", help="only kernels that have no results yet")
    examples.add_argument("--only", dest="kernels", help="kernels whose name, file.kernel, contains this")
    generated = commands.add_parser(
        "generated", help="text that is generated for the cases, to hold a refactoring against"
    )
    generated.add_argument("--out", type=pathlib.Path, required=True, help="the file to write")
    generated.add_argument("--against", type=pathlib.Path, help="another commit's file; exit code 1 if any differs")
    generated.add_argument("--cases", nargs="*", default=(), help="parts of names of cases (default: all)")
    mesh = commands.add_parser("mesh", help="a decoder layer's training step on a mesh, against JAX by hand")
    mesh.add_argument("topologies", nargs="*", help="such as v5e:4x4 (default: v5e:4x4 and tpu7x:2x2x2)")
    mesh.add_argument("--width", type=int, default=0, help="of a smaller layer, whose figures are only printed")
    mesh.add_argument("--folder", type=pathlib.Path, default=argparse.SUPPRESS, help="where results go")
    whole = commands.add_parser("whole_models", help="whole models for TPUs, ours and hand-written in JAX")
    whole.add_argument("cases", nargs="*", help="names of cases (default: all)")
    whole.add_argument("--chips", type=targets, default=TARGETS, help="chips, separated by commas")
    whole.add_argument("--keep-twins", action="store_true", help="figures of twins that are there are not made again")
    whole.add_argument("--layers", type=int, nargs="*", default=(), help="compile time of so many Llama layers instead")
    whole.add_argument("--operations", type=int, default=0, help="how many of the largest operations are printed")
    whole.add_argument("--folder", type=pathlib.Path, default=argparse.SUPPRESS, help="where results go")
    cpu = commands.add_parser("cpu", help="speed on this CPU: ours, plain JAX, eager, Inductor, Helion")
    cpu.add_argument("--only", dest="section", choices=SECTIONS, help="one section (default: all)")
    cpu.add_argument("--cases", nargs="*", default=(), help="names of kernels, models or other cases (default: all)")
    cpu.add_argument("--rounds", type=int, default=9, help="samples a side; medians and quartiles count (default 9)")
    # Suppressed, as the option before the command would else be lost.
    cpu.add_argument("--folder", type=pathlib.Path, default=argparse.SUPPRESS, help="where results go")
    return top


def targets(text: str) -> tuple[str, ...]:
    """Targets of a comma-separated list, in our order."""
    names = text.split(",")
    if not names or any(name not in TARGETS for name in names):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(TARGETS)}, got {text!r}")
    return tuple(name for name in TARGETS if name in names)


if __name__ == "__main__":
    sys.exit(main())
