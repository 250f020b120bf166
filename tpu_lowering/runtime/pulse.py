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


def store(prefix: str) -> Any:
    """Torch's store under a prefix. It is not to be kept: its threads live as long as somebody has it, and a group that
    is started again cannot have its port."""
    return dist.PrefixStore(prefix, compat.store())


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
        signs = store(self.PREFIX)
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
                    store(self.PREFIX).set(str(dist.get_rank()), str(number))
            except (RuntimeError, ValueError):  # the store is gone, or the group has ended meanwhile
                continue
