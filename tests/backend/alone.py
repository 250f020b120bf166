"""Programs in a process of their own, and what of torch's and JAX's global state they compare."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parent.parent.parent


def run_alone(program: str) -> str:
    """Runs a Python program in a process of its own; returns what it prints."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


STATE = """
import torch, jax, torch._dynamo
from tests.global_state import changed, settle, state

def compare(before, after):
    assert not changed(before, after), changed(before, after)

settle()
before = state()
"""
