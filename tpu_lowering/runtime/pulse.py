"""Signs of life of the ranks of a group: each counts in torch's store, and sees whether the others still do."""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from tpu_lowering import compat
from tpu_lowering.runtime.rank_errors import stopped

BEAT = 0.5  # seconds between two signs of life
SILENCE = 8 * BEAT  # of a rank that is gone


def start() -> None:
    """Gives signs of life, in a process that is one of several; as early as this package knows of the others."""
    if dist.is_available() and dist.is_initialized() and not compat.is_fake_group():
        own()


@functools.cache
def own() -> Pulse:
    """This process's."""
    return Pulse()


def end_with_process(thread: threading.Thread, end: Callable[[], None], seconds: float = 3.0) -> None:
    """Starts a thread, and ends it before Python ends: one that comes back from C++ later ends the process with it.

    Args:
        thread: not started yet.
        end: has it end.
        seconds: how long to wait for that.
    """

    def leave() -> None:
        end()
        thread.join(seconds)

    thread.start()
    atexit.register(leave)


class Store:
    """Torch's store under a prefix, with its methods. It is not to be kept: its threads live as long as somebody has
    it, and a group that is started again cannot have its port.

    Raises:
        TpuLoweringError: TL704, from each method, if the process that holds the store is gone.
    """

    def __init__(self, prefix: str) -> None:
        self._torch = dist.PrefixStore(prefix, compat.store())

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                return getattr(self._torch, method)(*args)
            except RuntimeError as error:
                holder = f"the process that holds torch's store ({str(error).splitlines()[0]})"
                raise stopped([holder], "a message to the other ranks") from error

        return call


class Pulse:
    """Signs of life of all ranks of the default group. This rank gives them until the process ends.

    Attributes:
        seen: for each other rank the last sign, and when it was seen first.
    """

    PREFIX = "tpu_lowering/pulse"

    def __init__(self) -> None:
        self.seen: dict[int, tuple[bytes, float]] = {}
        self.ended = threading.Event()
        end_with_process(threading.Thread(target=self._beat, name="tpu_lowering pulse", daemon=True), self.ended.set)

    def is_gone(self, rank: int) -> bool:
        """Whether a rank that gave signs of life gives none any more; to be asked again and again."""
        signs = Store(self.PREFIX)
        if not signs.check([str(rank)]):
            return False
        sign, now = signs.get(str(rank)), time.monotonic()
        known = self.seen.get(rank)
        if known is None or known[0] != sign:
            self.seen[rank] = (sign, now)
            return False
        return now - known[1] > SILENCE

    def _beat(self) -> None:
        number = 0
        while not self.ended.wait(BEAT if number else 0):
            number += 1
            try:
                if dist.is_initialized():
                    Store(self.PREFIX).set(str(dist.get_rank()), str(number))
            except (RuntimeError, ValueError):  # the store is gone, or the group has ended meanwhile
                continue
