"""Coded refusals: every error a user can meet has a code, a subject, a reason and a remedy.

The wording follows one shape, so that a reader finds the same thing in the same place::

    [TL201] operator has no JAX implementation: ns.op.default
      at   model.py:12 in forward: return torch.ops.ns.op(x)
      why  expected a JAX function registered for torch.ops.ns.op.default, got none
      fix  decorate one with @tpu_lowering.register_kernel(torch.ops.ns.op.default), or ...

Codes are stable: once released, a code keeps its meaning. ``CODES`` is the list of all of them; those that are reported
and not raised have their remedy beside them. Cause, example and remedy of each are in ``error_pages/``, a file for each
of ``GROUPS``; ``page`` puts them together.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import textwrap
import tomllib
from typing import Any

GROUPS: dict[str, tuple[str, str]] = {
    "1": ("calls", "How the backend is called"),
    "2": ("kernels", "Kernels"),
    "3": ("operators", "Operators and values"),
    "4": ("bugs", "Bugs of this package"),
    "5": ("reports", "Reasons in reports, and warnings; never raised"),
    "6": ("compiler", "The TPU compiler"),
    "7": ("devices", "Many devices"),
}
"""For each first digit of a code: the name of its page, and its title."""

_TABLE: dict[str, str | tuple[str, str]] = {
    # 1xx: how the backend is called
    "TL101": "unknown option",
    "TL102": "option has the wrong type or value",
    "TL103": "tensors on more than one device",
    "TL104": "device has no runtime",
    "TL105": "package missing or outside the tested versions",
    "TL106": "nothing to explain",
    "TL107": "unknown target",
    "TL108": "TPU compiler not installed",
    "TL109": "saved program is damaged or foreign",
    "TL110": "arguments share memory and one of them is written to",
    "TL111": "process was forked after JAX had run",
    "TL112": "function called with the wrong arguments",
    "TL113": "text that is no pipeline",
    "TL114": "buffer lost in a call that failed",
    "TL115": "no gradient to compile a backward for",
    "TL116": "cache folder that others can write to",
    "TL117": "function that is no single graph",
    # 2xx: kernels
    "TL201": "operator has no JAX implementation",
    "TL202": "kernel result has the wrong shape or dtype",
    "TL204": "write that was never declared",
    "TL205": "kernel has no backward and a gradient is needed",
    "TL206": "kernel cannot be traced to JAX",
    "TL207": "kernel registered twice",
    "TL208": "kernel signature cannot be registered",
    "TL210": "Helion kernel lacks something that tpu_lowering needs",
    "TL212": "kernel has a race",
    "TL213": "kernel stopped in JAX's TPU interpreter",
    "TL214": "memory that a kernel writes overlaps",
    "TL215": "kernel block outside its array",
    "TL216": "kernel changed under a program that cannot be compiled again",
    "TL217": "kernel called with other arguments than it takes",
    # 3xx: operators and values
    "TL301": "operator has no lowering",
    "TL302": "dtype is not supported",
    "TL303": "shape depends on data",
    "TL304": "strided view of memory that is not dense",
    "TL305": "eager refuses this call",
    "TL306": "gradient of a gradient",
    "TL307": "view of an argument that torch cannot rebuild",
    "TL308": "memory is changed in a way that no program can",
    "TL309": "jagged nested tensor",
    "TL310": "argument that no program can hold",
    "TL320": "random values depend on data, so eager's cannot be drawn before the program runs",
    "TL321": "random values from a generator of the user's own",
    "TL322": "random values inside control flow",
    # 4xx: our own invariants (a bug in tpu_lowering, never in the user's code)
    "TL401": "a pass changed the result",
    "TL402": "an invariant of the graph is broken",
    # 6xx: the TPU compiler
    "TL601": "more VMEM needed than there is",
    "TL602": "block shape does not fit the chip's tiles",
    "TL603": "dtype is not supported on the chip",
    "TL604": "the TPU compiler refused the program",
    "TL605": "the TPU compiler did not finish",
    "TL606": (
        "work around a kernel stays outside of it",
        "to fuse it, write the kernel as one pallas_call with blocks",
    ),
    "TL607": ("a region has no blocks that a kernel could run in", "use shorter rows, or a narrower dtype"),
    "TL608": ("a kernel would move no fewer bytes than XLA", "nothing to do"),
    # 7xx: many devices
    "TL701": "groups of ranks that are no grid",
    "TL702": "ranks have different programs",
    "TL703": "ranks wait for each other",
    "TL704": "rank stopped",
    "TL705": "collective that no program of all ranks can have",
    "TL706": "shape depends on the rank",
    "TL707": "tensors that no ranks can share a program on",
    "TL711": "axis that the mesh does not have",
    "TL712": "kernel without a rule for its sharding",
    "TL713": "sharding that does not fit a tensor",
    "TL714": "name in shardings that nothing has",
    "TL715": "sharding rule that does not fit a kernel",
    "TL716": (
        "kernel runs whole on every device",
        "name in shardings an argument, a parameter or a module whose result the kernel is given",
    ),
    "TL717": ("kernels are not generated for a program that XLA partitions", "nothing to do"),
    "TL718": "saved value is no longer on the devices",
    "TL721": "mesh on one device",
    "TL722": "topology with another number of devices than the mesh",
    "TL723": "groups of ranks that do not fill the topology",
    "TL724": "fake ranks where a group of ranks is",
    "TL725": "topology that libtpu does not have",
    "TL726": "fake ranks cannot run",
    "TL727": "too few meshes to fit a model to",
    # 5xx: reasons in reports and warnings (never raised)
    "TL501": (
        "buffer kept: the old contents are defined and the kernel reads them",
        "nothing to do if the kernel should read it; else write every element before loading any",
    ),
    "TL502": (
        "buffer kept: the old contents are defined and the kernel does not provably overwrite them all",
        "nothing to do if the rest must survive; else let the grid and the blocks cover the whole array",
    ),
    "TL503": (
        "allocation kept: its contents are used by something that is not a kernel write",
        "write the buffer before it is used, or return the kernel's result instead of the allocation",
    ),
    "TL504": (
        "buffer fresh, but the kernel reads it before writing",
        "initialise the buffer (torch.zeros_like) if the kernel should see defined values",
    ),
    "TL505": (
        "fill kept: the kernel does not provably overwrite every element",
        "nothing to do if the fill must show; else let the kernel store every element of every block",
    ),
    "TL506": (
        "kernel runs step by step on the CPU",
        "nothing to do for a TPU; for speed on a CPU use static grids and blocks without padding",
    ),
    "TL507": "kernel result with NaN that no operand has",
    "TL508": (
        "declared write that the kernel never makes",
        "nothing to do for a workspace or a list of which some change; else write to it, or leave it out of "
        "mutates_args",
    ),
    "TL509": (
        "buffer updated in place: from the first call on its storage cannot be resized",
        "nothing to do, unless it is to be resized or freed early: then give the function a view of it",
    ),
    "TL511": (
        "size not rounded up: padding could change a result",
        "nothing to do if few sizes are met; else write the line with operators that have a rule for padding",
    ),
    "TL512": (
        "program compiled for other sizes",
        "with many sizes: options={'buckets': 'power_of_two'}, or a step or list of sizes of your own",
    ),
    "TL513": (
        "captured again: a guard of Dynamo failed",
        "keep what the guard names as it is; a report says how, for each kind of guard",
    ),
    "TL514": (
        "program compiled again: a kernel reads a name that has another value",
        "give the kernel the value as an argument; a number is then an input of the program or a specialisation",
    ),
    "TL515": (
        "graph broken: Dynamo leaves the function here",
        "keep what Dynamo cannot trace out of the compiled function",
    ),
    "TL516": (
        "operator runs in eager torch, between programs",
        "decorate a JAX function with @tpu_lowering.register_kernel(operator)",
    ),
    "TL517": ("the chip's view is missing", "keep what breaks the graph out of the function"),
    "TL521": (
        "attention kept: no kernel takes it",
        "use float32 or bfloat16, multiply weights by dropout alone, mask keys alike for all queries in training, "
        "and keep the rows of a head in one piece of a page",
    ),
    "TL522": (
        "attention kept: its scores or weights are used elsewhere",
        "do not return or reuse the weights; let a mask need no gradient",
    ),
    "TL523": ("attention kept: a kernel would move no fewer bytes", "nothing to do"),
    "TL524": ("rows computed again in the backward, not saved", "nothing to do"),
    "TL525": ("experts are multiplied as they are stored", "nothing to do"),
}

CODES: dict[str, str] = {code: row if isinstance(row, str) else row[0] for code, row in _TABLE.items()}
"""What each code says."""

REMEDIES: dict[str, str] = {code: row[1] for code, row in _TABLE.items() if not isinstance(row, str)}
"""What a user can do about a code, where that is the same for each subject."""


@dataclasses.dataclass(frozen=True)
class Page:
    """What is to be said of a code beyond its text.

    Attributes:
        cause: why it comes out, in Markdown.
        example: code that makes it come out; a command, if it begins with "python -m".
        remedy: what to do, in Markdown.
        needs: what the example needs beyond torch and JAX on a CPU; "" for nothing.
        run: whether the example can be run where that is there.
        devices: how many CPU devices of JAX's the example needs.
        fixed: the same code as it should be; "" where the remedy says it.
    """

    cause: str
    example: str
    remedy: str
    needs: str = ""
    run: bool = True
    devices: int = 1
    fixed: str = ""


@functools.cache
def pages() -> dict[str, Page]:
    """What is to be said of every code, by code."""
    folder = pathlib.Path(__file__).parent / "error_pages"
    read = [tomllib.loads((folder / f"{name}.toml").read_text("utf-8")) for name, _ in GROUPS.values()]
    return {code: _page_of(code, facts) for group in read for code, facts in group.items()}


def _page_of(code: str, facts: dict[str, Any]) -> Page:
    described: dict[str, Any] = {"remedy": _as_sentence(code), "run": "needs" not in facts, **facts}
    return Page(**described)


def _as_sentence(code: str) -> str:
    remedy = REMEDIES.get(code, "")
    return f"{remedy[:1].upper()}{remedy[1:]}."


WIDTH = 118
"""Columns of a page's prose."""


def page(code: str, level: int = 1) -> str:
    """All that is known of a code as Markdown: what it says, its cause, an example, a remedy.

    Args:
        code: a key of ``CODES``, in capitals or not.
        level: of its heading.

    Raises:
        TpuLoweringError: TL112 for a text that is no code.
    """
    code = code.upper()
    if code not in CODES:
        raise wrong_argument("code", f"a code such as TL205, got {code!r}", "docs/errors.md lists every code")
    known = pages()[code]
    kind = "bash" if known.example.startswith("python -m") else "python"
    devices = f"{known.devices} devices, such as XLA_FLAGS=--xla_force_host_platform_device_count={known.devices} gives"
    needs = known.needs or (devices if known.devices > 1 else "")
    parts = [
        f"{'#' * level} {code}",
        f"**{CODES[code][:1].upper()}{CODES[code][1:]}.**",
        _wrapped(known.cause),
        f"For example{f' (needs {needs})' if needs else ''}:",
        f"```{kind}\n{known.example}```",
        _wrapped(f"**Remedy.** {known.remedy}"),
    ]
    if known.fixed:
        parts.append(f"```python\n{known.fixed}```")
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Where an object is in memory, as Python writes objects without a text of their own. No error says it."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What is refused, where, why, and what to do about it.

    Attributes:
        code: a key of ``CODES``.
        subject: the offender by its own name, such as ``ns::op`` or ``argument 'x' of exp_into``.
        reason: the rule and what broke it, worded "expected X, got Y".
        remedy: what the user can do, if possible as a line to paste.
        where: the user's source line (``file:line in function: code``) or "" where there is none.
    """

    code: str
    subject: str
    reason: str
    remedy: str
    where: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"expected a code listed in errors.CODES, got {self.code!r}")
        for part in ("subject", "reason", "remedy", "where"):  # what a library's message quotes may have addresses
            object.__setattr__(self, part, ADDRESS.sub("", getattr(self, part)))

    def __str__(self) -> str:
        lines = [f"[{self.code}] {CODES[self.code]}: {self.subject}"]
        if self.where:
            lines.append(f"  at   {self.where}")
        lines.append(f"  why  {self.reason}")
        lines.append(f"  fix  {self.remedy}")
        return "\n".join(lines)


class TpuLoweringError(RuntimeError):
    """A coded error. ``error.refusal`` holds its parts; ``str(error)`` is the whole text."""

    def __init__(self, refusal: Refusal | str) -> None:
        """A text in place of a refusal is how DataLoader raises the error of a worker again, with a traceback in it."""
        super().__init__(str(refusal))
        self.refusal = refusal if isinstance(refusal, Refusal) else _refusal_in(refusal)

    def __reduce__(self) -> tuple[type, tuple[Refusal | str]]:
        return type(self), (self.refusal if str(self) == str(self.refusal) else str(self),)

    @property
    def code(self) -> str:
        return self.refusal.code


_TEXT = re.compile(r"\[(TL\d+)\] [^:\n]*: (.*)(?:\n  at   (.*))?\n  why  (.*)\n  fix  (.*)")


def _refusal_in(text: str) -> Refusal:
    """The refusal whose text is the last one in a longer text."""
    code, subject, where, reason, remedy = _TEXT.findall(text)[-1]
    return Refusal(code, subject, reason, remedy, where)


def refuse(code: str, subject: str, reason: str, remedy: str, where: str = "") -> TpuLoweringError:
    """Builds the error of a refusal; the caller raises it."""
    return TpuLoweringError(Refusal(code, subject, reason, remedy, where))


def wrong_argument(subject: str, expected_got: str, remedy: str) -> TpuLoweringError:
    """The refusal of an argument of this package's own functions. ``expected_got``: "X, got Y"."""
    return refuse("TL112", subject, f"expected {expected_got}", remedy)
