"""What a process keeps from one compilation to the next: bounded caches, each with a name and a reason.

Nothing else in the package is a container that grows while programs are compiled, but tables in which something is
registered for good; ``tests/test_structure.py`` lists those.
"""

from __future__ import annotations

import collections
import functools
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar, cast

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Given = ParamSpec("Given")
_MISSING = object()


class Cache(Generic[Key, Value]):
    """Values by key, the most recently used ones; thread-safe.

    A value that leaves is made again when it is asked for. One that something still uses is found again: a kernel
    compares by identity, so as long as a graph or a program holds it, an equal one must be the same object.

    Attributes:
        name: of the session's caches, this one.
        bound: the most entries; with another one, the least recently used leaves.
        reason: why values are kept, and what the bound costs.
        dropped: called with the key of each entry that leaves.
    """

    def __init__(self, name: str, bound: int, reason: str, dropped: Callable[[Key], Any] | None = None) -> None:
        if bound < 1:
            raise ValueError(f"expected a bound of at least one entry for {name}, got {bound}")
        self.name, self.bound, self.reason, self.dropped = name, bound, reason, dropped
        self._lock = threading.RLock()  # a key's own __eq__ and __hash__ run under it
        self._entries: collections.OrderedDict[Key, Value] = collections.OrderedDict()
        self._in_use: weakref.WeakValueDictionary[Key, Any] = weakref.WeakValueDictionary()
        SESSION.enter(self)

    def find(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key; made if there is none. Of threads that make one at once, the first one's is kept."""
        with self._lock:
            found = self._entries.get(key, _MISSING)
            if found is not _MISSING:
                self._entries.move_to_end(key)
                return cast(Value, found)
            if (used := self._in_use.get(key)) is not None:
                return self._enter(key, used)
        made = make()
        with self._lock:
            return self._entries[key] if key in self._entries else self._enter(key, made)

    def get(self, key: Key) -> Value | None:
        """The value of a key, or None."""
        with self._lock:
            found = self._entries.get(key, _MISSING)
            if found is _MISSING:
                return self._in_use.get(key)
            self._entries.move_to_end(key)
            return cast(Value, found)

    def put(self, key: Key, value: Value) -> None:
        """Keeps a value in place of the one that there was."""
        with self._lock:
            self._entries.pop(key, None)
            self._enter(key, value)

    def items(self) -> list[tuple[Key, Value]]:
        """What is kept now, the least recently used first."""
        with self._lock:
            return list(self._entries.items())

    def clear(self) -> None:
        with self._lock:
            keys = list(self._entries)
            self._entries.clear()
            self._in_use.clear()
        for key in keys:
            self._tell(key)

    def __len__(self) -> int:
        return len(self._entries)

    def _enter(self, key: Key, value: Value) -> Value:
        self._entries[key] = value
        if type(value).__weakrefoffset__:
            self._in_use[key] = value
        while len(self._entries) > self.bound:
            self._tell(self._entries.popitem(last=False)[0])
        return value

    def _tell(self, key: Key) -> None:
        if self.dropped is not None:
            self.dropped(key)


class Session:
    """All that a process keeps between compilations."""

    def __init__(self) -> None:
        self.caches: dict[str, Cache[Any, Any]] = {}

    def enter(self, cache: Cache[Any, Any]) -> None:
        if cache.name in self.caches:
            raise ValueError(f"expected one cache of the name {cache.name}, got a second")
        self.caches[cache.name] = cache

    def clear(self) -> None:
        for cache in list(self.caches.values()):
            cache.clear()


SESSION = Session()


def kept(bound: int, reason: str) -> Callable[[Callable[Given, Value]], Callable[Given, Value]]:
    """Decorator: a function whose results are kept by its arguments, which have a hash; see ``Cache``."""

    def wrap(function: Callable[Given, Value]) -> Callable[Given, Value]:
        name = f"{function.__module__.removeprefix('tpu_lowering.')}.{function.__name__}"
        cache: Cache[Hashable, Value] = Cache(name, bound, reason)

        @functools.wraps(function)
        def found(*args: Given.args, **kwargs: Given.kwargs) -> Value:
            return cache.find((args, *kwargs.items()), lambda: function(*args, **kwargs))

        return cast(Callable[Given, Value], found)

    return wrap


def clear() -> None:
    """Forgets everything that this package keeps in the process for later compilations.

    Traced kernels, generated kernels, what eager was asked, the source text of tracebacks: all of it is made again when
    it is needed. Programs that are compiled keep working, and hold what they need themselves; operators of
    ``kernel_op`` and ``register_kernel`` stay registered. What torch and JAX keep is theirs:
    ``torch.compiler.reset()``, ``jax.clear_caches()``. The folder of the option ``cache`` is left alone.
    """
    SESSION.clear()
