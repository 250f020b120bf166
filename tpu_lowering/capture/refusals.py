"""Refusals without the errors that Dynamo wraps them in."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from tpu_lowering import compat, errors


def refusal_in(error: BaseException) -> errors.TpuLoweringError | None:
    """The coded error that an error is, or that Dynamo has wrapped in it; None if there is none."""
    if isinstance(error, compat.BackendCompilerFailed):
        error = getattr(error, "inner_exception", error)
    return error if isinstance(error, errors.TpuLoweringError) else None


@contextlib.contextmanager
def unwrapped() -> Generator[None]:
    """A scope whose coded errors are raised as they are.

    Raises:
        TpuLoweringError: in place of the error that Dynamo wraps it in.
    """
    try:
        yield
    except compat.BackendCompilerFailed as error:
        refusal = refusal_in(error)
        if refusal is None:
            raise
        raise refusal from None
