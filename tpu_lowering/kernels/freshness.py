"""Functions that are traced, and what they read when they were: followed anew when a name has another value.

JAX keeps what it traced of functions inside of a kernel (loop bodies, what ``jax.jit`` wraps) by the functions alone.
So when a name has changed, or one may have that nobody can see, a kernel is traced where those caches are not asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tpu_lowering import compat
from tpu_lowering.kernels.fingerprints import Followed, follow
from tpu_lowering.session import Cache


class Functions:
    """The functions of one process that were traced. Called under the lock of the cache that it is for."""

    def __init__(self) -> None:
        self.known: Cache[Callable[..., Any], Followed] = Cache(
            "kernels.freshness",
            1024,
            "following a function takes a millisecond; one that is forgotten may change unseen, so JAX is asked anew",
            self._forget,
        )
        self.turn = 0
        self.has_unknown = False

    def follow(self, function: Callable[..., Any]) -> Followed:
        """What a function is made of now."""
        found = self.known.get(function)
        if found is None or not found.is_current():
            self.turn += found is not None
            found = follow(function)
            self.known.put(function, found)
        return found

    def _forget(self, function: Callable[..., Any]) -> None:
        self.turn += 1

    def scope(self, followed: Followed) -> contextlib.AbstractContextManager[Any]:
        """The scope to trace a function in."""
        for function in [function for function, found in self.known.items() if not found.is_current()]:
            self.follow(function)  # it may call what is traced now
        self.turn += bool(followed.unknown) and self.has_unknown
        self.has_unknown = self.has_unknown or bool(followed.unknown)
        return compat.tracing_turn(self.turn) if self.turn else contextlib.nullcontext()


class Watch:
    """Whether what a kernel is made of is still so, for a kernel that is traced meanwhile."""

    def __init__(self, followed: Followed) -> None:
        self.followed = followed

    def settle(self) -> None:
        """After tracing: what it changed is not asked for."""
        self.followed = self.followed.settled()

    def is_current(self) -> bool:
        return self.followed.is_current()
