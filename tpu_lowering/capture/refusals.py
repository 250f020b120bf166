"""Refusals without the errors that Dynamo wraps them in, and Dynamo's own of a function that is no single graph."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs


def refusal_in(error: BaseException) -> errors.TpuLoweringError | None:
    """The coded error that an error is, or that Dynamo has wrapped in it; None if there is none.

    What a kernel's types are is asked while Dynamo captures, whose error then has the refusal as its cause; with torch
    2.14 there is an error of torch's between the two, raised from the refusal.
    """
    given = error
    if isinstance(error, compat.BackendCompilerFailed):
        error = getattr(error, "inner_exception", error)
    while not isinstance(error, errors.TpuLoweringError):
        inner = error.__cause__ or error.__context__
        is_between = error is not given and isinstance(error.__cause__, errors.TpuLoweringError)
        if inner is None or not (is_between or isinstance(error, compat.DynamoError)):
            return None
        error = inner
    if error is given or str(error) == str(error.refusal):
        return error
    plain = errors.TpuLoweringError(error.refusal)  # without what Dynamo has written behind its text
    plain.__cause__ = error.__cause__
    return plain


@contextlib.contextmanager
def unwrapped() -> Generator[None]:
    """A scope whose coded errors are raised as they are.

    Raises:
        TpuLoweringError: in place of the error that Dynamo wraps it in; TL117 where Dynamo may not leave a function
            that it cannot capture whole.
    """
    try:
        yield
    except compat.DynamoError as error:
        refusal = refusal_in(error)
        if refusal is not None:
            raise refusal from refusal.__cause__
        if not isinstance(error, compat.Unsupported):
            raise
        raise no_single_graph(error) from error


def no_single_graph(error: Exception) -> errors.TpuLoweringError:
    """The refusal of a function that Dynamo cannot capture whole."""
    text = str(error).partition("\nfrom user code:")[0]
    first, explanation, _ = said_by_dynamo(text)
    return errors.refuse(
        "TL117",
        first,
        f"expected a function that Dynamo captures as one graph, got one that it leaves here: {explanation or first}",
        "keep that line out of the function; tpu_lowering.explain(fn, ...) lists all such lines",
        graphs.source_line_of(compat.stack_behind(error)),
    )


def said_by_dynamo(reason: str) -> tuple[str, str, str]:
    """What Dynamo says of a place where it leaves a function: what is there, an explanation, and hints."""
    first, *others = [line.strip() for line in reason.splitlines() if line.strip()]
    explained = [line.removeprefix("Explanation: ") for line in others if line.startswith("Explanation: ")]
    hints = [line.removeprefix("Hint: ") for line in others if line.startswith("Hint: ") and "PyTorch" not in line]
    return first.rstrip("."), "".join(explained[:1]), " ".join(hints[:2])
