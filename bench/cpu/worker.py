"""The process that the sections measure in, a fork for each case; see ``bench.model_compile_time.Nursery``."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

from bench import model_compile_time
from bench.cpu import SECTIONS
from bench.cpu.cache import VARIABLE

SECONDS = 1800.0  # for one case


def measure(section: str, case: str, rounds: str) -> dict[str, Any]:
    """One case of a section: the answer of its module's ``measure``."""
    return importlib.import_module(f"bench.cpu.{section}").measure(case, int(rounds))


def main() -> None:
    """Serves. Nothing that an earlier run cached on disk is used."""
    os.environ[VARIABLE] = ""
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
    for section in SECTIONS:
        importlib.import_module(f"bench.cpu.{section}")
    model_compile_time.serve(measure, SECONDS)


if __name__ == "__main__":
    main()
