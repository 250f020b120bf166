"""Signs of life of the ranks of a group: each counts in torch's store, and sees whether the others still do."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from tpu_lowering import compat
from tpu_lowering.session import Cache

BEAT = 0.5  # seconds between two signs of life
SILENCE = 8 * BEAT  # of a rank that is gone

_pulses: Cache[int, Pulse] = Cache("runtime.pulse", 4, "one for each process group that was there in the process")


def start() -> None:
    """Gives signs of life, in a process that is one of several; as early as this package knows of the others."""
    if dist.is_available() and dist.is_initialized():
        of(compat.store())


def of(store: Any) -> Pulse:
    """The signs of life in a store."""
    return _pulses.find(id(store), lambda: Pulse(store))


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


class Pulse:
    """Signs of life of all ranks of the default group. This rank gives them until the process ends.

    Attributes:
        seen: for each other rank the last sign, and when it was seen first.
    """

    def __init__(self, store: Any) -> None:
        self.store = dist.PrefixStore("tpu_lowering/pulse", store)
        self.rank = dist.get_rank()
        self.seen: dict[int, tuple[bytes, float]] = {}
        self.ended = threading.Event()
        end_with_process(threading.Thread(target=self._beat, name="tpu_lowering pulse", daemon=True), self.ended.set)

    def is_gone(self, rank: int) -> bool:
        """Whether a rank that gave signs of life gives none any more; to be asked again and again."""
        if not self.store.check([str(rank)]):
            return False
        sign, now = self.store.get(str(rank)), time.monotonic()
        known = self.seen.get(rank)
        if known is None or known[0] != sign:
            self.seen[rank] = (sign, now)
            return False
        return now - known[1] > SILENCE

    def _beat(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                self.store.set(str(self.rank), str(number))
            except RuntimeError:  # the store is gone, and with it the group
                return
            if self.ended.wait(BEAT):
                return
