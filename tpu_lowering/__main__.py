"""``python -m tpu_lowering``, or ``tpu-lowering``; see ``--help``, and that of each command."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from rich.console import Console

from tpu_lowering import __version__
from tpu_lowering.ir.chips import CHIPS

EXIT_CODES = """exit codes: 0 done; 1 refused, with a coded error, or something is not as it should be;
2 a command line that is wrong; 130 stopped with Ctrl-C"""


FIRST_LINES = {"doctor": "tpu_lowering doctor: looks at what is installed and tries it, which takes up to a minute"}
"""What a command prints before anything is imported, if it is silent for long."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: see ``EXIT_CODES``."""
    given = vars(_parser().parse_args(argv))
    name = given.pop("command")
    if first := FIRST_LINES.get(name):
        print(first, flush=True)
    try:
        return getattr(_commands(), name)(**given)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        from tpu_lowering.capture.refusals import refusal_in

        refusal = refusal_in(error)
        if refusal is None:
            raise
        print(refusal, file=sys.stderr)
        return 1


def _commands() -> ModuleType:
    """What runs the commands. To import it takes seconds, which a line on a terminal says."""
    console = Console(stderr=True)
    line = console.status("imports torch and JAX") if console.is_terminal else contextlib.nullcontext()
    with line:
        return importlib.import_module("tpu_lowering.report.commands")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tpu_lowering",
        description="PyTorch with Helion and Pallas kernels as one XLA program",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tpu_lowering {__version__}")
    subcommands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return subcommands.add_parser(name, help=summary, description=summary)

    demo = command("demo", "run a Llama-style decoder with Helion kernels and report")
    demo.add_argument("--length", type=int, default=64, help="tokens in the sequence, at most 128 (default 64)")
    command("doctor", "say what is installed, what works and how to fix the rest")
    selftest = command("selftest", "try kernels, a model, a training step and a cache on a device")
    selftest.add_argument("--device", default="", help="a device of JAX's, such as tpu:0 (default: the CPU)")
    selftest.add_argument("--target", help="the chip to compare with (default: the device's own)")
    selftest.add_argument("--out", default="", help="a file for the text that is printed")
    _add_explain(command("explain", "report on a function of a file, or say what a code means"))
    pipeline = command("pipeline", "print the stages of a program, as options['passes'] takes them")
    pipeline.add_argument("--target", default="", help="a TPU, such as tpu7x (default: the CPU)")
    bisect = command("bisect", "find the first stage that changes a function's results, on the CPU")
    _add_function(bisect)
    bisect.add_argument("--passes", default="", help="text of a pipeline, as the command pipeline prints it")
    bisect.add_argument("--fuse", default="always", choices=("always", "tpu", "never"), help="default: always")
    _add_tune(command("tune", "choose forms of regions and kernels with the TPU compiler"))
    _add_plan(command("plan", "memory and traffic of a step on many meshes, of which few are compiled"))
    return parser


OF_FUNCTION = "FUNCTION takes what FILE's example_inputs is or returns: a tuple, or a dictionary of keywords"


def _add_function(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", metavar="FILE:FUNCTION", help=OF_FUNCTION)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", metavar="FILE:FUNCTION | CODE", help=f"{OF_FUNCTION}; or a code")
    parser.add_argument("--target", default="", help="a TPU, such as tpu7x, to see the TPU compiler's view too")
    parser.add_argument("--options", nargs="*", type=_option, default=(), metavar="NAME=VALUE", help="of the backend")
    parser.add_argument("--no-grad", action="store_true", help="report on the forward as inference runs it")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", default="", metavar="FILE", help="write the report as a page, too")
    told = "write the target's static schedule as a timeline for Perfetto, too"
    parser.add_argument("--trace", default="", metavar="FILE", help=told)


def _option(text: str) -> tuple[str, Any]:
    """``fuse=always`` or ``buckets=512``: values are Python's, or text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _add_tune(parser: argparse.ArgumentParser) -> None:
    _add_function(parser)
    chips = ", ".join(chip.name for chip in CHIPS)
    parser.add_argument("--target", dest="chip", default="tpu7x", help=f"a TPU: {chips} (default tpu7x)")
    parser.add_argument("--seconds", type=int, default=600, help="no form is compiled after that (default 600)")
    parser.add_argument("--cache", default="", help="folder that keeps the choices, as option cache names it")
    parser.add_argument("--configs", action="store_true", help="give Helion kernels without a config one")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", metavar="FILE:FUNCTION", help="takes a mesh and a size an axis, gives fn and args")
    parser.add_argument("--target", dest="chip", default="tpu7x", help="a TPU (default tpu7x)")
    parser.add_argument("--chips", dest="counts", default="8..64", help="how many (default 8..64: 8, 16, 32, 64)")
    parser.add_argument("--best", type=int, default=3, help="meshes to print for each (default 3)")
    parser.add_argument("--fuse", default="tpu", choices=("tpu", "never"), help="with kernels or without (default tpu)")


if __name__ == "__main__":
    sys.exit(main())
