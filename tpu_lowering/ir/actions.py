"""What passes say they did, or refused to do."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import fx

from tpu_lowering.ir import graphs

Kind = Literal[
    "fresh",
    "removed",
    "kept",
    "moved",
    "unwritten",
    "exact",
    "recompiled",
    "fused",
    "unfused",
    "launched",
    "interpreted",
    "updated",
    "whole",
    "eager",
]


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing a pass did, or refused to do.

    Attributes:
        kind: "fresh" (an operand became a fresh buffer), "removed" (an allocation or fill is gone), "kept" (a buffer
            stays), "moved" (an equivalent form was chosen), "unwritten" (a declared write is never made), "exact" (a
            size is not rounded up), "recompiled" (something was compiled again), "fused" (operators became a kernel),
            "unfused" (they could have, but did not), "launched" (a kernel's launch has another form than its config
            says), "interpreted" (a kernel runs in an interpreter, which is slow), "updated" (an argument is updated in
            place), "whole" (every device of a mesh runs a whole kernel), "eager" (an operator runs in eager torch).
        node: name of the node it is about.
        where: the user's source line.
        code: a code of ``errors.CODES`` for a refusal or remark, else "".
        reason: why, in one sentence.
        nbytes: bytes of the buffer in question.
    """

    kind: Kind
    node: str
    where: str
    code: str
    reason: str
    nbytes: int

    @staticmethod
    def on(kind: Kind, node: fx.Node, reason: str, code: str = "") -> Action:
        return Action(kind, node.name, graphs.place(node), code, reason, graphs.type_of(node).nbytes)
