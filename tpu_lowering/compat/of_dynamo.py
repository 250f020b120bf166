"""What Dynamo says of a compilation, and what it is told: breaks, times, and artefacts of its logs and traces."""

from __future__ import annotations

import contextlib
import inspect
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch

from tpu_lowering.compat.lookup import private

_UTILS = "torch._dynamo.utils"


class Break(NamedTuple):
    """A place where Dynamo left the function that it was capturing.

    Attributes:
        reason: in Dynamo's words: a line, then an explanation and hints.
        stack_trace: of the place in the user's code; "" where Dynamo skipped a whole function.
    """

    reason: str
    stack_trace: str


class Watched:
    """What was compiled in a scope.

    Attributes:
        breaks: where graphs broke.
        dynamo_seconds: in Dynamo, without what it called.
        backend_seconds: in AOTAutograd and the backend, at capture and for backwards.
    """

    def __init__(self) -> None:
        self.breaks: list[Break] = []
        self.dynamo_seconds = self.backend_seconds = 0.0


@contextlib.contextmanager
def watched_compilations() -> Generator[Watched]:
    """A scope; what Dynamo did in it is known after it.

    Dynamo keeps reasons in a list and, of functions that it skipped, in counters. Only its own ``explain`` reads them,
    which runs a backend of its own.
    """
    reasons: Any = private("torch", _UTILS, "graph_break_reasons", "why graphs broke")
    counters: Any = private("torch", _UTILS, "counters", "why functions were skipped")
    metrics: Any = private("torch", _UTILS, "get_compilation_metrics", "how long Dynamo took")
    seen, counted = len(reasons), Counter(counters["graph_break"])
    began = time.time() * 1e6
    watched = Watched()
    try:
        yield watched
    finally:
        new = reasons[seen:] if len(reasons) >= seen else reasons[:]  # a reset forgets them
        watched.breaks += [Break(str(one.reason), "".join(traceback.format_list(one.user_stack))) for one in new]
        listed = {one.reason for one in watched.breaks}
        skipped = Counter(counters["graph_break"]) - counted
        watched.breaks += [Break(str(reason), "") for reason in skipped if str(reason) not in listed]
        for one in metrics():
            if (getattr(one, "start_time_us", None) or 0) >= began:
                dynamo, captured, backward = (
                    (getattr(one, f"{name}_cumulative_compile_time_us", None) or 0) / 1e6
                    for name in ("dynamo", "aot_autograd", "backward")
                )
                watched.dynamo_seconds += max(0.0, dynamo - captured)
                watched.backend_seconds += captured + backward


def compiled_apart(fn: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for one report: what it compiles counts for no other call's limit, and is no reason for why
    another call compiles again. Torch 2.9, of torch_xla, keeps all calls of a function together."""
    given = inspect.signature(torch.compile).parameters
    apart: dict[str, Any] = {"isolate_recompiles": True} if "isolate_recompiles" in given else {}
    return torch.compile(fn, backend=backend, **apart)


def stack_behind(error: BaseException) -> str:
    """The stack trace of the user's code that Dynamo's error is about; only its message has it otherwise."""
    return "".join(traceback.format_list(getattr(error, "real_stack", None) or ()))


def artifact_log(name: str) -> logging.Logger:
    """The logger of one of the artefacts that ``TORCH_LOGS`` names, such as "output_code".

    Torch gives a logger of its own to each module that asks. It has handlers at its own loggers alone, so ours stands
    beneath one of those.
    """
    get = private("torch", "torch._logging", "getArtifactLogger", "TORCH_LOGS")
    return get("torch._dynamo.backends.tpu_lowering", name)


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """Writes an artefact for ``TORCH_TRACE``, and so for tlparse. ``payload`` is called only if there is such a trace.

    Args:
        name: of the file that tlparse makes of it.
        encoding: "string" or "json".
        payload: makes the text.
    """
    trace = private("torch", "torch._logging", "trace_structured", "TORCH_TRACE")
    trace(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": encoding},
        payload_fn=payload,
        expect_trace_id=False,
    )


def profiler_enabled() -> Callable[[], bool]:
    """What says whether torch's profiler is on. It is asked before each call of a program, so it is looked up once."""
    return private("torch", "torch.autograd", "_profiler_enabled", "names in profiles, which cost nothing without one")
