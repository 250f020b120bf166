"""``python -m tpu_lowering demo | doctor | pipeline | explain | bisect | tune | plan``; see ``--help`` of each."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tpu_lowering import compat, errors
from tpu_lowering.ir.chips import CHIPS
from tpu_lowering.report import commands


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, or 1 where something is wrong, with a coded error if it has one."""
    parser = argparse.ArgumentParser(
        prog="python -m tpu_lowering", description="PyTorch with Helion and Pallas kernels as one XLA program"
    )
    subcommands = parser.add_subparsers(dest="command", required=True)
    demo = subcommands.add_parser("demo", help="run a Llama-style decoder with Helion kernels and report")
    demo.add_argument("--length", type=int, default=64, help="tokens in the sequence, at most 128 (default 64)")
    subcommands.add_parser("doctor", help="say what is installed, what works and how to fix the rest")
    explain = subcommands.add_parser("explain", help="report on a function of a Python file")
    explain.add_argument(
        "target", metavar="FILE:FUNCTION", help="FILE's function example_inputs() gives FUNCTION's arguments"
    )
    explain.add_argument("--json", action="store_true", help="print the report as JSON")
    pipeline = subcommands.add_parser("pipeline", help="print the stages of a program, as options['passes'] takes them")
    pipeline.add_argument("--target", default="", help="a TPU, such as tpu7x (default: the CPU)")
    bisect = subcommands.add_parser("bisect", help="find the first stage that changes a function's results, on the CPU")
    bisect.add_argument("function", metavar="FILE:FUNCTION", help="as for explain")
    bisect.add_argument("--passes", default="", help="text of a pipeline, as the command pipeline prints it")
    bisect.add_argument("--fuse", default="always", choices=("always", "tpu", "never"), help="default: always")
    tune = subcommands.add_parser("tune", help="choose forms of a function's regions and kernels with the TPU compiler")
    tune.add_argument("function", metavar="FILE:FUNCTION", help="as for explain")
    tune.add_argument(
        "--target", default="tpu7x", help=f"a TPU: {', '.join(chip.name for chip in CHIPS)} (default tpu7x)"
    )
    tune.add_argument("--seconds", type=int, default=600, help="no form is compiled after that (default 600)")
    tune.add_argument("--cache", default="", help="folder that keeps the choices, as option cache names it")
    tune.add_argument("--configs", action="store_true", help="give Helion kernels without a config one")
    plan = subcommands.add_parser("plan", help="memory and traffic of a step on many meshes, of which few are compiled")
    plan.add_argument("function", metavar="FILE:FUNCTION", help="takes a mesh and a size an axis, gives fn and args")
    plan.add_argument("--target", default="tpu7x", help="a TPU (default tpu7x)")
    plan.add_argument("--chips", default="8..64", help="numbers of chips (default 8..64: 8, 16, 32, 64)")
    plan.add_argument("--best", type=int, default=3, help="meshes to print for each (default 3)")
    plan.add_argument("--fuse", default="tpu", choices=("tpu", "never"), help="with kernels or without (default tpu)")
    given = parser.parse_args(argv)
    try:
        if given.command == "demo":
            return commands.demo(given.length)
        if given.command == "doctor":
            return commands.doctor()
        if given.command == "pipeline":
            return commands.pipeline(given.target)
        if given.command == "bisect":
            return commands.bisect(given.function, given.passes, given.fuse)
        if given.command == "plan":
            return commands.plan(given.function, given.target, given.chips, given.best, given.fuse)
        if given.command == "tune":
            return commands.tune(given.function, given.target, given.seconds, given.cache, given.configs)
        return commands.explain(given.target, as_json=given.json)
    except errors.TpuLoweringError as error:
        print(error, file=sys.stderr)
        return 1
    except compat.BackendCompilerFailed as error:
        inner: Any = error
        if not isinstance(inner.inner_exception, errors.TpuLoweringError):
            raise
        print(inner.inner_exception, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
