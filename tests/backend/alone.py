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
import os, torch, jax, torch._dynamo, torch._inductor.config

def state():
    return {
        "jax": dict(jax.config.values),
        "environment": dict(os.environ),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "random": torch.random.get_rng_state().tolist(),
        "dynamo": torch._dynamo.config.get_config_copy(),
        "inductor": torch._inductor.config.get_config_copy(),
        "backends": sorted(torch._dynamo.list_backends(exclude_tags=())),
        "one": str(jax.numpy.ones(1).dtype),
    }

def compare(before, after):
    for name in before:
        assert before[name] == after[name], name

torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))  # torch's own first-use settings
before = state()
"""
