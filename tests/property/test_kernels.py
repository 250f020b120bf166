"""What random kernels do to old contents against what is claimed of them.

Each kernel runs twice, on different old contents. Where it is claimed to cover its output, both results are the same;
where it is claimed not to read, they differ only in elements that both left as they were.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property import kernel_programs
from tpu_lowering import compat
from tpu_lowering.analyse import pallas

EXAMPLES = int(os.environ.get("TPU_LOWERING_KERNELS", "40"))
INSTRUCTION = st.tuples(st.integers(0, 13), st.integers(0, 3), st.integers(0, 7), st.integers(0, 7))


def effect_and_results(layout, instructions):
    """What is claimed of a kernel's output, its old operand, and its results on two different old contents."""
    rng = np.random.default_rng(0)
    x, *old = (rng.integers(-9, 9, kernel_programs.SHAPE).astype(np.float32) for _ in range(3))
    old[1] = -old[0] - 20  # no element is the same, and signs differ
    places, extent = jnp.asarray(rng.permutation(4).tolist() * 4, jnp.int32), jnp.int32(layout.grid[0])
    function = kernel_programs.call(layout, instructions)
    with compat.chip_scope("TPU7x"):
        closed = jax.make_jaxpr(function)(x, old[0], places, extent)
    equation = next(e for e in closed.jaxpr.eqns if e.primitive.name == "pallas_call")
    effects = pallas.call_effects(equation)
    run = jax.jit(jax.extend.core.jaxpr_as_fun(closed))
    return effects.outputs[0], effects.inputs[1], old, [np.asarray(run(x, o, places, extent)[0]) for o in old]


def complaint(layout, instructions):
    """What a kernel's results say against the claims; "" if nothing."""
    written, taken, old, results = effect_and_results(layout, instructions)
    same = (results[0] == results[1]) | (np.isnan(results[0]) & np.isnan(results[1]))
    left = (results[0] == old[0]) & (results[1] == old[1])
    if (written.covers and not taken.reads) and not same.all():
        return f"it covers its output, but {np.argwhere(~same).tolist()} depend on old contents"
    if not (written.reads or taken.reads) and not (same | left).all():
        return f"it reads no old contents, but {np.argwhere(~(same | left)).tolist()} are computed with them"
    if not written.writes and not left.all():
        return f"it writes nothing, but {np.argwhere(~left).tolist()} changed"
    return ""


@pytest.mark.parametrize("layout", kernel_programs.LAYOUTS, ids=lambda layout: layout.name)
@settings(max_examples=max(1, EXAMPLES // 12), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(instructions=st.lists(INSTRUCTION, min_size=1, max_size=5))
def test_old_contents_do_what_is_claimed(layout, instructions):
    assert not complaint(layout, instructions)
