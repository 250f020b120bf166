"""Several ways to do the same, timed in turns, so that a change of the machine's load hits all of them alike.

A *sample* is the mean time of a few calls in a row. In every round each side gives one sample, in an order that is
drawn anew; ratios are taken within rounds, so that they have a spread of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import torch

SAMPLE_SECONDS = 0.05  # as many calls make a sample
SIDE_SECONDS = 10.0  # a slow side has fewer rounds, so that its samples take no longer, and at least one
PAUSE_SECONDS = 0.02  # before a sample: OpenMP's threads spin on for milliseconds after torch's last call


class Side(Protocol):
    """One of the ways."""

    def sample(self, calls: int) -> float:
        """Mean seconds of a call, over so many in a row."""
        ...


@dataclasses.dataclass(frozen=True)
class Local:
    """A side in this process; ``call`` returns when the result is there."""

    call: Callable[[], object]

    def sample(self, calls: int) -> float:
        call = self.call
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls


class Remote:
    """A side in a process of its own, forked from this one: for what changes the state of its process, or may crash.

    Fork it before this process computes anything: the threads of torch and JAX do not survive a fork.

    Raises:
        RuntimeError: at any time, if building or calling the side failed; its text says why.
    """

    def __init__(self, build: Callable[[], Callable[[], object]]) -> None:
        context = multiprocessing.get_context("fork")
        self.end, theirs = context.Pipe()
        self.process = context.Process(target=_answer, args=(self.end, theirs, build))
        self.process.start()
        theirs.close()
        self._receive()

    def sample(self, calls: int) -> float:
        self.end.send(calls)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self.end.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join()
            raise RuntimeError(f"the process ended with exit code {self.process.exitcode}") from error
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def stop(self) -> None:
        # Closing this end is not enough: a side that was forked later holds a copy of it.
        with contextlib.suppress(BrokenPipeError):
            self.end.send(None)
        self.process.join()


def _answer(ours: Connection, end: Connection, build: Callable[[], Callable[[], object]]) -> None:
    """What a forked side does: builds, then gives samples until the other end is closed."""
    ours.close()
    try:
        with torch.inference_mode():
            side = Local(build())
            end.send(0.0)
            while (calls := end.recv()) is not None:
                end.send(side.sample(calls))
    except EOFError:
        pass
    except BaseException as error:
        end.send(described(error))
    os._exit(0)


def described(error: BaseException) -> str:
    """An error in one short line."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300] if not isinstance(error, RuntimeError) or not text else text[:300]


def interleave(sides: Mapping[str, Side], rounds: int, calls: int | None = None) -> dict[str, dict[str, Any]]:
    """Samples of all sides, taken in turns.

    Args:
        sides: by name; already warm.
        rounds: of each side, fewer if it is slow; the first call of a very slow one is its only sample.
        calls: a sample, in all rounds; None for as many as take ``SAMPLE_SECONDS``.

    Returns:
        For each side its entry, as ``entry`` gives it; with ``error`` alone if it failed.
    """
    plans: dict[str, tuple[int, int]] = {}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    errors: dict[str, str] = {}
    for name, side in sides.items():
        try:
            first = side.sample(1)
            if first < SIDE_SECONDS / 10:
                first = min(first, side.sample(1), side.sample(1))
            plans[name] = plan(first, rounds, calls)
            if first > SIDE_SECONDS:
                samples[name].append(first)
        except Exception as error:
            errors[name] = described(error)
    order = random.Random(0)
    for _ in range(rounds):
        names = [name for name, (own, _) in plans.items() if len(samples[name]) < own and name not in errors]
        order.shuffle(names)
        for name in names:
            time.sleep(PAUSE_SECONDS)
            try:
                samples[name].append(sides[name].sample(plans[name][1]))
            except Exception as error:
                errors[name] = described(error)
    return {name: {"error": errors[name]} if name in errors else entry(samples[name], plans[name][1]) for name in sides}


def plan(seconds: float, rounds: int, calls: int | None = None) -> tuple[int, int]:
    """(rounds, calls a sample) of a side whose call takes so many seconds."""
    if calls is not None:
        return rounds, calls
    many = max(1, math.ceil(SAMPLE_SECONDS / seconds))
    affordable = max(1, int(SIDE_SECONDS / (seconds * many)))
    return min(rounds, affordable), many


def entry(samples: Sequence[float], calls: int = 1) -> dict[str, Any]:
    """What is kept of a side: seconds a call as median and quartiles, and each round's sample."""
    low, median, high = quartiles(samples)
    kept = [float(f"{sample:.5g}") for sample in samples]
    return {"median": median, "low": low, "high": high, "calls": calls, "samples": kept}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile), to five digits."""
    low, median, high = (float(f"{value:.5g}") for value in np.percentile(values, (25, 50, 75)))
    return low, median, high


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times one side's seconds are another's: median and quartiles over the rounds that both have."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(above: Mapping[str, Any] | None, below: Mapping[str, Any] | None) -> Ratio | None:
        """The ratio of two sides' entries; None if one of them has no samples."""
        if not above or not below or "error" in above or "error" in below:
            return None
        pairs = zip(above["samples"], below["samples"], strict=False)
        low, median, high = quartiles([one / other for one, other in pairs])
        return Ratio(median, low, high)

    def __str__(self) -> str:
        """Such as ``1.20 (1.15 to 1.31)``."""
        return f"{digits(self.median)} ({digits(self.low)} to {digits(self.high)})"


def digits(value: float) -> str:
    """A ratio with the digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
