"""What is said when the ranks of a mesh do not run a program together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tpu_lowering import errors

Side = tuple[int, str]
"""A rank, and what it does or has."""


def crossed(one: Side, other: Side) -> errors.TpuLoweringError:
    """Each of two ranks waits for the other."""
    (first, here), (second, there) = sorted([one, other])
    return errors.refuse(
        "TL703",
        f"rank {first} and rank {second}",
        f"expected all ranks to run the same programs in the same order, got rank {first} waiting in {here}, rank "
        f"{second} in {there}",
        "give all ranks arguments of the same sizes and types, and let them call compiled functions in one order: what "
        "one rank compiles alone must have no collective",
    )


def different(one: Side, other: Side, where: str) -> errors.TpuLoweringError:
    """Two ranks have different programs."""
    (first, mine), (second, theirs) = sorted([one, other])
    lines = itertools.zip_longest(mine.splitlines(), theirs.splitlines(), fillvalue="")
    number, (here, there) = next((at, pair) for at, pair in enumerate(lines, 1) if pair[0] != pair[1])
    return errors.refuse(
        "TL702",
        f"rank {first} and rank {second}",
        f"expected one program on all ranks, got another line {number}: {here.strip()!r} on rank {first}, "
        f"{there.strip()!r} on rank {second}",
        "give all ranks the same versions, options, sizes and types; where torch puts a rank's own number into the "
        "graph, set torch.distributed.config.compile_on_one_rank = True before the function is compiled",
        where,
    )


def stopped(who: Sequence[int | str], what: str) -> errors.TpuLoweringError:
    """Ranks, or other processes, give no sign of life."""
    names = ", ".join(one if isinstance(one, str) else f"rank {one}" for one in who)
    return errors.refuse(
        "TL704",
        names,
        f"expected it to take part in {what}, got no sign of life",
        "look at its output; start all ranks again, from a checkpoint",
    )


def failed(what: str, error: BaseException) -> errors.TpuLoweringError:
    """A call of XLA's failed although all ranks are there."""
    return errors.refuse(
        "TL704",
        what,
        f"expected all ranks to take part, got {str(error).splitlines()[0]}",
        "look at the output of the other ranks",
    )


def late(ranks: Sequence[int], what: str, waited: float) -> errors.TpuLoweringError:
    """Ranks do something else for longer than the group's timeout."""
    return errors.refuse(
        "TL703",
        ", ".join(f"rank {rank}" for rank in ranks),
        f"expected it in {what} within {waited:.0f} s, got something else that it does",
        "let all ranks call the compiled function, or give init_process_group a longer timeout",
    )
