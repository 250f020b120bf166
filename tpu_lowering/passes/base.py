"""What a pass is: a small frozen value that rewrites a graph and says what it did."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from torch import fx

from tpu_lowering.ir import graphs


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing a pass did, or refused to do.

    Attributes:
        kind: "fresh" (an operand became a fresh buffer), "removed" (an allocation or fill is gone),
            "kept" (a buffer stays), "moved" (an equivalent form was chosen), "exact" (a size is not rounded up),
            "recompiled" (something was compiled again), "fused" (operators became a kernel), "unfused" (they could
            have, but did not), "launched" (a kernel's launch has another form than its config says).
        node: name of the node it is about.
        where: the user's source line.
        code: a code of ``errors.CODES`` for a refusal or remark, else "".
        reason: why, in one sentence.
        nbytes: bytes of the buffer in question.
    """

    kind: str
    node: str
    where: str
    code: str
    reason: str
    nbytes: int

    @staticmethod
    def on(kind: str, node: fx.Node, reason: str, code: str = "") -> Action:
        return Action(kind, node.name, graphs.source_line(node), code, reason, graphs.type_of(node).nbytes)


class Pass(Protocol):
    """A rewrite of a normalised graph, which is valid before and after.

    ``name`` is a verb phrase. Calling the pass edits the graph in place and returns its actions; a pass
    that finds nothing to do changes nothing, and running it twice does what running it once does.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, graph: fx.Graph) -> list[Action]: ...
