"""``Remark``: what a person is told of one value of a program."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Remark:
    """What is said of one buffer, or of another value.

    Attributes:
        node: its name in the graph.
        program: the program it belongs to.
        where: the user's source line, ``file.py:line in function: code``.
        nbytes: its size.
        code: a code of ``errors.CODES``; "" where there is nothing to explain.
        reason: why it is kept, or how it could go.
        remedy: what the user can do.
    """

    node: str
    program: str
    where: str
    nbytes: int
    code: str = ""
    reason: str = ""
    remedy: str = ""
