"""What JAX's TPU interpreter finds in a kernel: races, reads outside of memory, and results nothing was stored to.

The interpreter keeps its state in globals, so one program runs in it at a time.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering import compat, errors
from tpu_lowering.compat import Conflict


@dataclasses.dataclass(frozen=True)
class KernelFinding:
    """What one run of a kernel showed.

    Attributes:
        kernel: its name.
        conflicts: accesses that nothing puts in an order.
        undefined: for each result with NaN although no operand has one: its number, how many elements, of how many.
    """

    kernel: str
    conflicts: tuple[Conflict, ...]
    undefined: tuple[tuple[int, int, int], ...]


_one_at_a_time = threading.Lock()
_found: list[KernelFinding] = []


def observed(kernel: str, operands: Sequence[jax.Array], results: Sequence[jax.Array]) -> list[jax.Array]:
    """The results of an interpreted call, to be used in their place: when they are there, the kernel is looked at."""

    def look(*values: Any) -> Any:
        given, made = values[: len(operands)], values[len(operands) :]
        _found.append(KernelFinding(kernel, tuple(compat.interpreter_conflicts()), tuple(_undefined(given, made))))
        return made

    types = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results]
    return list(io_callback(look, types, *operands, *results))


def _undefined(operands: Sequence[Any], results: Sequence[Any]) -> Generator[tuple[int, int, int]]:
    if any(_count_nan(operand) for operand in operands):
        return
    for number, result in enumerate(results):
        if count := _count_nan(result):
            yield number, count, np.size(result)


def _count_nan(value: Any) -> int:
    value = np.asarray(value)
    return int(np.isnan(value).sum()) if jnp.issubdtype(value.dtype, jnp.inexact) else 0


def watched(compiled: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a compiled program whose kernels run in the interpreter.

    Raises:
        TpuLoweringError: TL212 for a race; TL213 for what the interpreter itself refuses, such as a read outside of an
            array.

    Warns of results that nothing was stored to.
    """
    with _one_at_a_time:
        _found.clear()
        try:
            results = jax.block_until_ready(compiled(*arguments))
        except jax.errors.JaxRuntimeError as error:
            raise _refusal(error) from error
        finally:
            pltpu.reset_tpu_interpret_mode_state()
        report(_found)
        return results


def _refusal(error: Exception) -> errors.TpuLoweringError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "Error: " in line), lines[0] if lines else repr(error))
    return errors.refuse(
        "TL213",
        "a kernel in JAX's TPU interpreter",
        f"expected a kernel that runs, got {said}",
        "see JAX's message above: it names the position; mend the kernel's block shapes, index maps or slices",
    )


def report(findings: Sequence[KernelFinding]) -> None:
    """Says what was found; see ``watched``."""
    for finding in findings:
        for number, count, size in finding.undefined:
            warnings.warn(
                f"[TL507] {finding.kernel}: {count} of {size} elements of result {number} are NaN although no operand "
                "has one: nothing was stored to them, or the kernel read memory that nothing was stored to",
                UserWarning,
                stacklevel=4,
            )
    for finding in findings:
        if finding.conflicts:
            told = "; ".join(map(str, finding.conflicts))
            raise errors.refuse(
                "TL212",
                finding.kernel,
                f"expected accesses in an order, got {told}",
                "wait for a copy before its memory is used: every start() needs its wait() first",
            )
