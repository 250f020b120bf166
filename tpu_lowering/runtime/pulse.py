"""Signs of life of the ranks of a group: each counts in torch's store, and sees whether the others still do."""

from __future__ import annotations

import threading
import time
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


class Pulse:
    """Signs of life of all ranks of the default group. This rank gives them until the process ends.

    Attributes:
        seen: for each other rank the last sign, and when it was seen first.
    """

    def __init__(self, store: Any) -> None:
        self.store = dist.PrefixStore("tpu_lowering/pulse", store)
        self.rank = dist.get_rank()
        self.seen: dict[int, tuple[bytes, float]] = {}
        threading.Thread(target=self._beat, name="tpu_lowering pulse", daemon=True).start()

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
            time.sleep(BEAT)
