"""One entry of a database: all its samples, compiled in chunks, against eager and against ``aot_eager``."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tests.opinfo import optimizers
from tests.opinfo.calls import Call, module_calls, operator_calls, seed
from tests.opinfo.compare import UNDEFINED, Differs, Failure, Outcome, compare, execute, same
from tests.opinfo.tasks import DTYPES, Result, Task
from tpu_lowering.errors import TpuLoweringError

CHUNK = 12  # calls that are compiled as one function
ENOUGH = 3  # failing samples after which the rest of an entry is left out
BACKEND = "helion_tpu"
REFERENCE = "aot_eager"  # an entry counts if this backend passes it


@dataclasses.dataclass(frozen=True)
class Expectation:
    """A call with what eager made of it."""

    number: int
    call: Call
    eager: Outcome
    random: bool
    undefined: bool

    def check(self, got: Outcome) -> None:
        compare(self.call, got, self.eager, values=not (self.random or self.undefined))


def run_entry(task: Task, info: Any) -> Result:
    """Runs a task. Never raises for what the compiled code does."""
    began = time.monotonic()
    if task.database == "optim":
        samples, failures_of = optimizers.samples(task, info), _optimizer_failures
    else:
        samples, failures_of = _expectations(task, info), _failures
    failures, reference = _both(task, samples, failures_of)
    first = next((x for number, x in failures.items() if number not in reference), None)
    first = first or next(iter(failures.values()), Failure("", ""))
    return Result(
        task.database,
        task.name,
        task.column,
        samples=len(samples),
        random=sum(x.random for x in samples),
        counted=not reference and bool(samples),
        code=first.code,
        message=first.message,
        failing=tuple(failures),
        reference_failing=tuple(reference),
        reference="; ".join(f"{x.code}: {x.message}" for x in list(reference.values())[:1]),
        seconds=round(time.monotonic() - began, 2),
    )


def _both(
    task: Task, samples: Sequence[Any], failures_of: Callable[..., Iterator[tuple[int, Failure]]]
) -> tuple[Mapping[int, Failure], Mapping[int, Failure]]:
    """The failures of our backend, and those of the reference on the samples that were tried."""
    failures = dict(itertools.islice(failures_of(samples, BACKEND), ENOUGH))
    tried = [x for x in samples if len(failures) < ENOUGH or x.number <= max(failures)]
    asked = tried if task.reference else [x for x in tried if x.number in failures]
    return failures, dict(failures_of(asked, REFERENCE))


def _optimizer_failures(samples: Sequence[optimizers.Sample], backend: str) -> Iterator[tuple[int, Failure]]:
    for sample in samples:
        try:
            sample.check(backend)
        except Exception as error:  # whatever compiling or running raises
            yield sample.number, failure_of(error)


def _expectations(task: Task, info: Any) -> list[Expectation]:
    """What eager does on each sample; samples on which it raises are left out."""
    dtype, made = DTYPES[task.dtype], []
    seed()
    unused = torch.get_rng_state()
    calls = (module_calls if task.database == "module" else operator_calls)(info, dtype, task.grad)
    for number, call in _chosen(list(calls), task.samples):
        try:
            (eager,) = execute([call], None)
        except Exception:  # whatever eager raises
            continue
        drew = not torch.equal(torch.get_rng_state(), unused)
        made.append(Expectation(number, call, eager, drew, info.name in UNDEFINED))
    return made


def _chosen(calls: list[Call], count: int) -> list[tuple[int, Call]]:
    """``count`` of the calls, evenly spread, with their numbers; all of them if it is 0."""
    step = max(1, len(calls) // count) if count else 1
    return list(enumerate(calls))[::step][: count or None]


def _failures(expected: Sequence[Expectation], backend: str) -> Iterator[tuple[int, Failure]]:
    """The samples that fail, by number, with why."""
    for start in range(0, len(expected), CHUNK):
        yield from _failures_of(expected[start : start + CHUNK], backend)


def _failures_of(chunk: Sequence[Expectation], backend: str) -> Iterator[tuple[int, Failure]]:
    """Runs a chunk as one function; if that fails, each half, down to single samples."""
    if not chunk:
        return
    try:
        outcomes = execute([x.call for x in chunk], backend)
        if any(x.random for x in chunk):
            _check_determinism(chunk, outcomes, backend)
    except Exception as error:  # whatever compiling or running raises
        if len(chunk) == 1:
            yield chunk[0].number, failure_of(error)
            return
        middle = len(chunk) // 2
        yield from _failures_of(chunk[:middle], backend)
        yield from _failures_of(chunk[middle:], backend)
        return
    for each, outcome in zip(chunk, outcomes, strict=True):
        try:
            each.check(outcome)
        except Differs as error:
            yield each.number, failure_of(error)


def _check_determinism(chunk: Sequence[Expectation], outcomes: Sequence[Outcome], backend: str) -> None:
    """The same seed must give the same values."""
    for one, other in zip(outcomes, execute([x.call for x in chunk], backend), strict=True):
        if not same(one, other):
            raise Differs("random", "expected equal values after the same manual_seed, got others")


def failure_of(error: BaseException) -> Failure:
    """The code of an error and its first telling line; Dynamo wraps ours."""
    inner = getattr(error, "inner_exception", None)
    while inner is not None and not isinstance(error, TpuLoweringError):
        error, inner = inner, getattr(inner, "inner_exception", None)
    if isinstance(error, Differs | TpuLoweringError):
        code = error.code
    else:
        code = type(error).__name__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return Failure(code, lines[0][:300] if lines else "")
