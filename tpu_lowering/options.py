"""Options of the backend: one frozen value, and the only reader of the environment."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tpu_lowering import errors, offenders

Fallback = Literal["error", "eager"]
CpuKernels = Literal["vectorized", "interpret", "tpu_interpret"]
Random = Literal["jax", "torch"]
Fuse = Literal["tpu", "always", "never"]
Tune = Literal[False, True, "configs"]
Buckets = str | int | tuple[int, ...]
Axes = tuple[tuple[str, ...], ...]
"""For each dimension of a tensor, the mesh axes that it is split along; dimensions that are left out are whole."""
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user can choose, through ``torch.compile(..., options={...})``.

    Attributes:
        verify: run the graph before and after every pass on the reference interpreter, undefined memory
            poisoned, and name the pass that changed a result. Slow; for tests and bug reports.
        poison: fill memory that eager leaves undefined with NaN (the largest integer for integer types)
            in the compiled program too.
        passes: run the optimising passes. False leaves allocations and aliases as the user wrote them. A text names the
            passes that run, in order, in place of those that are the default: see ``python -m tpu_lowering pipeline``.
        fallback: what an operator without a JAX implementation does: "error" raises a coded error,
            "eager" runs it in eager torch, between two programs; so it does with one whose result's shape
            depends on data.
        cpu_kernels: how Pallas kernels run on the CPU: "vectorized" as plain JAX, what cannot be so in Pallas's
            interpreter; "interpret" all in that interpreter; "tpu_interpret" in JAX's TPU interpreter, which fills
            memory that nothing was stored to with NaN, and reports races. The last two are slow.
        random: where random values come from: "jax" draws them in the program, from a key that torch's generator
            for the CPU draws for each call; "torch" has eager torch draw them before the program runs, the same
            values that eager draws.
        fuse: where row reductions (softmax, normalisations, losses and their gradients) become generated Pallas
            kernels, and attention JAX's library kernels, if one moves fewer bytes than XLA would: in programs for a
            "tpu"; "always", on the CPU too, which has no use for it but to test the kernels; or "never".
        tune: for a TPU, compile each region that could become a kernel, and each launch of a Helion kernel that can be
            written in two ways, in several forms with libtpu's compiler, and take the one that moves the fewest bytes,
            of equal ones the one that can be the fastest. "configs" also replaces the config of Helion kernels that
            have none of their own. With ``cache``, what the compiler said is kept, and used without ``tune`` too.
        tune_seconds: for how long a program may be tuned; no form is compiled after that.
        dump: folder that receives every stage of every graph, or "" for none.
            Read from ``TPU_LOWERING_DUMP`` where it is not given.
        cache: folder that keeps compiled programs for later processes, or "" for none. Entries of other versions,
            other sources of this package or another processor are left alone.
            Read from ``TPU_LOWERING_CACHE_DIR`` where it is not given.
        cache_bytes: how many bytes the entries of ``cache`` may take, at least 1; beyond, those go that were not used
            for the longest time. Nothing is kept with ``cache=""``, not with a limit of 0.
        buckets: what dynamic sizes are rounded up to, so that one program serves many: "" for nothing,
            "power_of_two", a step (512: to 512, 1024, 1536, ...), or a list of sizes, beyond the last of which
            nothing is rounded. Where rounding could change a result it is not done, and the report says why.
        device: the JAX device that programs run on, such as "tpu:0" or "cpu:1", for tensors on the CPU; "" for
            where the tensors are. With a ``mesh`` it is the platform of the devices, such as "tpu"; "" for JAX's own.
        mesh: the grid of JAX devices that programs run on, from the names of its axes to their sizes, outermost first:
            ``{"data": 4, "model": 2}``. XLA partitions each program. Tensors are on the CPU. Kept as pairs.
        shardings: how tensors lie on the mesh: from names to a tuple with, for each dimension, the name of an axis, a
            tuple of names, or None for a dimension that is whole; trailing dimensions may be left out. Names are those
            of parameters and buffers (``"layers.*.q_proj.weight"``), of the function's arguments (``"input_ids"``), and
            of submodules, whose results are constrained; ``*``, ``?`` and ``[...]`` are wildcards, and the first name
            that matches counts. What has no name here is whole on each device. Kept as pairs of names and ``Axes``.
    """

    verify: bool = False
    poison: bool = False
    passes: bool | str = True
    fallback: Fallback = "error"
    cpu_kernels: CpuKernels = "vectorized"
    random: Random = "jax"
    fuse: Fuse = "tpu"
    tune: Tune = False
    tune_seconds: int = 600
    dump: str = ""
    cache: str = ""
    cache_bytes: int = 8 * GIB
    buckets: Buckets = ""
    device: str = ""
    mesh: tuple[tuple[str, int], ...] = ()
    shardings: tuple[tuple[str, Axes], ...] = ()

    def __post_init__(self) -> None:
        for name in ("dump", "cache"):
            given = getattr(self, name)
            if isinstance(given, (str, os.PathLike)):
                object.__setattr__(self, name, check_folder(name, os.fspath(given)))
        for name, hint in get_type_hints(type(self)).items():
            if name not in ("buckets", "passes", "mesh", "shardings"):
                check_option(name, hint, getattr(self, name))
        if type(self.passes) not in (bool, str):
            raise wrong_value("passes", "True, False, or names of passes separated by commas", self.passes)
        if isinstance(self.buckets, list):
            object.__setattr__(self, "buckets", tuple(self.buckets))
        check_buckets(self.buckets)
        object.__setattr__(self, "mesh", mesh_pairs(self.mesh))
        object.__setattr__(self, "shardings", sharding_pairs(self.shardings))
        check_device(self.device, bool(self.mesh))
        check_many_devices(self)
        if self.tune_seconds < 0:
            raise wrong_value("tune_seconds", "a number of seconds", self.tune_seconds)
        if self.cache_bytes < 1:
            raise wrong_value("cache_bytes", "a positive number of bytes", self.cache_bytes)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def create(cls, options: Mapping[str, Any] | None = None, mode: str | None = None) -> Options:
        """Options from what ``torch.compile`` was given.

        Args:
            options: the ``options`` dictionary of ``torch.compile``.
            mode: Inductor's ``mode``; it has no meaning here and is ignored with one warning.

        Raises:
            TpuLoweringError: TL101 for an unknown name, TL102 for a value of the wrong kind.
        """
        passed: Any = options
        if passed is not None and not isinstance(passed, Mapping):
            raise errors.refuse(
                "TL102",
                "options",
                f"expected a dictionary of options by their names, got {type(passed).__name__}",
                "pass options={'fuse': 'never'}",
            )
        given = dict(options or {})
        for name in given:
            if name not in cls.names():
                raise unknown_option(name, cls.names())
        if mode not in (None, "default"):
            warnings.warn(
                f"helion_tpu has no modes: mode={mode!r} is ignored. Options of helion_tpu go through options={{...}}.",
                UserWarning,
                stacklevel=2,
            )
        given.setdefault("dump", os.environ.get("TPU_LOWERING_DUMP", ""))
        given.setdefault("cache", os.environ.get("TPU_LOWERING_CACHE_DIR", ""))
        return cls(**given)


def wrong_value(name: str, expected: str, value: Any) -> errors.TpuLoweringError:
    expected_got = f"expected {expected}, got {offenders.shown(value)}"
    return errors.refuse("TL102", f"{name!r}", expected_got, f"pass {expected} as options[{name!r}]")


def check_folder(name: str, value: Any) -> str:
    """A folder's name, with the user's home in place of ``~``."""
    if not isinstance(value, str) or "\0" in value:
        raise wrong_value(name, "the name of a folder", value)
    return os.path.expanduser(value)


def unknown_option(name: Any, known: tuple[str, ...]) -> errors.TpuLoweringError:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
    return errors.refuse(
        "TL101",
        offenders.shown(name),
        f"expected one of {', '.join(known)}, got {offenders.shown(name)}",
        f"did you mean {near!r}? Write options={{{near!r}: ...}}",
    )


def check_option(name: str, hint: Any, value: Any) -> None:
    if get_origin(hint) is Literal:
        valid = any(type(value) is type(known) and value == known for known in get_args(hint))  # 0 is not False
        expected = f"one of {', '.join(map(repr, get_args(hint)))}"
    else:
        valid, expected = type(value) is hint, f"a {hint.__name__}"
    if not valid:
        raise wrong_value(name, expected, value)


def check_buckets(value: Any) -> None:
    sizes = value if isinstance(value, tuple) else (value,)
    positive = all(type(size) is int and size > 0 for size in sizes)
    valid = value in ("", "power_of_two") if isinstance(value, str) else positive and list(sizes) == sorted(set(sizes))
    if not valid or value == ():
        expected = "'power_of_two', a step such as 512, or a list of rising sizes such as [128, 512, 2048]"
        raise wrong_value("buckets", expected, value)


def check_device(value: str, many: bool = False) -> None:
    if many and value and not re.fullmatch(r"[a-z]\w*", value):
        raise wrong_value("device", "a JAX platform, such as 'tpu' or 'cpu', together with a mesh", value)
    if value and not re.fullmatch(r"[a-z]\w*(:\d+)?", value):
        expected = "a JAX platform and the number of a device, such as 'tpu:0' or 'cpu:1'"
        raise wrong_value("device", expected, value)


MESH = "a dictionary from the names of axes to their sizes, such as {'data': 4, 'model': 2}"
SHARDINGS = "a dictionary from names to the axes of each dimension, such as {'layers.*.q_proj.weight': ('model', None)}"


def _pairs(name: str, expected: str, value: Any) -> list[tuple[Any, Any]]:
    """The items of a dictionary, or pairs as ``Options`` keeps them."""
    items = list(value.items()) if isinstance(value, Mapping) else value
    kept = isinstance(items, (list, tuple)) and all(isinstance(item, tuple) and len(item) == 2 for item in items)
    if not kept or not all(isinstance(key, str) and key for key, _ in items):
        raise wrong_value(name, expected, value)
    return list(items)


def mesh_pairs(value: Any) -> tuple[tuple[str, int], ...]:
    """The axes of a mesh with their sizes."""
    pairs = _pairs("mesh", MESH, value)
    axes = [axis for axis, _ in pairs]
    if len(set(axes)) < len(axes) or not all(type(size) is int and size > 0 for _, size in pairs):
        raise wrong_value("mesh", MESH, value)
    return tuple(pairs)


def sharding_pairs(value: Any) -> tuple[tuple[str, Axes], ...]:
    """Names with the axes of each dimension."""
    pairs = _pairs("shardings", SHARDINGS, value)
    return tuple((name, _axes(name, given)) for name, given in pairs)


def _axes(name: str, given: Any) -> Axes:
    dimensions = [() if each is None else (each,) if isinstance(each, str) else each for each in _sequence(given)]
    axes = [axis for each in dimensions for axis in _sequence(each)]
    known = isinstance(given, (tuple, list)) and all(isinstance(each, (tuple, list)) for each in dimensions)
    named = known and all(isinstance(axis, str) for axis in axes)
    if not named or len(set(axes)) < len(axes):
        expected = "a tuple with the name of an axis, a tuple of names, or None for each dimension"
        raise errors.refuse(
            "TL102",
            f"'shardings', for {name!r}",
            f"expected {'each axis once' if named else expected}, got {offenders.shown(given)}",
            f"write options['shardings'][{name!r}] = ('axis', None)",
        )
    return tuple(tuple(each) for each in dimensions)


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else ()


def check_many_devices(options: Options) -> None:
    """Checks what ``mesh`` and ``shardings`` say together, and with other options.

    Raises:
        TpuLoweringError: TL102; TL711 for an axis that the mesh does not have.
    """
    if options.shardings and not options.mesh:
        raise wrong_value("mesh", f"{MESH}, because there are shardings", dict(options.mesh))
    if options.mesh and options.fallback != "error":
        raise wrong_value("fallback", "'error', because a program on a mesh is one graph", options.fallback)
    known = [axis for axis, _ in options.mesh]
    for name, axes in options.shardings:
        for axis in (axis for each in axes for axis in each):
            if axis not in known:
                raise errors.refuse(
                    "TL711",
                    f"{axis!r}, of options['shardings'][{name!r}]",
                    f"expected one of the axes {', '.join(map(repr, known))} of options['mesh'], got {axis!r}",
                    "name one of them, or give the mesh such an axis",
                )


def round_up(size: int, buckets: Buckets) -> int:
    """A size, rounded up to the next bucket."""
    if not buckets or size <= 1:
        return size
    if buckets == "power_of_two":
        return 1 << (size - 1).bit_length()
    if isinstance(buckets, int):
        return -(-size // buckets) * buckets
    return next((bucket for bucket in buckets if bucket >= size), size)  # type: ignore[operator]
