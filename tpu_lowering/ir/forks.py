"""Processes that were forked after JAX ran in them: JAX's threads are not there, and to wait for them never ends."""

from __future__ import annotations

import os

from tpu_lowering import errors

_owner: int | None = None
"""The process that JAX was first used in, by us; a forked one inherits the number."""

_is_owner = False
"""Whether this process is that one. To ask the system for its number at each call would cost more than the rest."""


def _forget() -> None:
    global _is_owner
    _is_owner = False


os.register_at_fork(after_in_child=_forget)


def refuse_after_fork() -> None:
    """Called before JAX compiles or runs something.

    Raises:
        TpuLoweringError: TL111, in a process that was forked from one in which JAX ran.
    """
    if not _is_owner:
        _own_or_refuse()


def _own_or_refuse() -> None:
    global _is_owner, _owner
    if _owner is not None:
        raise errors.refuse(
            "TL111",
            f"process {os.getpid()}, forked from {_owner}",
            "expected a process of its own, because JAX's threads do not survive os.fork(), got one that was forked "
            "after JAX had run",
            "start processes with 'spawn', such as DataLoader(..., multiprocessing_context='spawn'), or call compiled "
            "functions and kernels in the main process only",
        )
    _owner, _is_owner = os.getpid(), True
