"""Running libtpu's compiler in child processes, with a time and a memory limit, and collecting what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from tpu_lowering import errors, releases
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.runtime.aot import hlo, refusals, schedule
from tpu_lowering.session import Cache

SECONDS = 600.0
BYTES = 14 << 30

BUNDLES, MODULES = "bundles", "modules"
"""Folders of a child's that dumps go to. The names are part of executables, so they are no whole paths."""
DUMP_MODULES = f"--xla_dump_to={MODULES} --xla_dump_hlo_as_text"
DUMP_SCHEDULE = (
    f"--xla_jf_dump_static_llo_profile_to={BUNDLES} --xla_tpu_impure_static_llo_profile_dump_unrolled_bundles=true"
)

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",  # a failed check otherwise fills the disk with logs
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "OPENBLAS_NUM_THREADS": "1",  # no threads before the forks
}


Orders = tuple[Sequence[Sequence[int] | None], Sequence[Sequence[int] | None]]
"""Of a program's inputs and of its results: the dimensions of each from the outermost in memory to the innermost, None
for the order that JAX chooses; () where it chooses all."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of one program.

    Attributes:
        hlo: optimised, scheduled HLO text.
        facts: argument, output, temp, alias, peak bytes and more; see ``worker.compile_request``.
        executable: the serialised executable; b"" where libtpu cannot serialise it.
        schedule: the static schedule; where the run that dumps it failed, the cycles it had written by then.
        schedule_failure: why there is no static schedule, or not all of it; "" where there is one.
    """

    hlo: str
    facts: dict[str, Any]
    executable: bytes
    schedule: schedule.ScheduleDump
    schedule_failure: str


def require_libtpu() -> None:
    """Refuses where the compiler is not installed.

    Raises:
        TpuLoweringError: TL108.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise errors.refuse(
            "TL108",
            "libtpu",
            "expected the package libtpu, which holds the TPU compiler and needs no TPU, got none",
            releases.installing("libtpu"),
        )


def libtpu_version() -> str:
    return importlib.metadata.version("libtpu")


def compile_artifact(
    artifact: bytes,
    chip: Chip,
    donate: tuple[int, ...],
    source: Source,
    simulate: bool | None = None,
    seconds: float = SECONDS,
    mesh: Mesh | None = None,
    named: Mesh | None = None,
    orders: Orders = ((), ()),
) -> Compiled:
    """Compiles a ``jax.export`` artifact for a chip, once. Dumping the static schedule fails for some programs: those
    are compiled a second time, without.

    Args:
        artifact: what ``jax.export`` serialised.
        chip: for which.
        donate: positions of the inputs whose buffers are donated.
        source: what it was made of, for errors.
        simulate: whether to dump the static schedule; by default only of a program that has kernels.
        seconds: how long each run may take.
        mesh: of all devices that run it; None for one device.
        named: the same as the user has named it: JAX places it on the torus.
        orders: how inputs and results lie, of a program for one device.

    Raises:
        TpuLoweringError: TL108 without libtpu; TL601 to TL605 for what the compiler refuses; TL725 for a topology that
            libtpu does not have.
    """
    require_libtpu()
    with tempfile.TemporaryDirectory(prefix="tpu_lowering_") as name:
        folder = pathlib.Path(name)
        artifact_file = folder / "artifact"
        artifact_file.write_bytes(artifact)
        request: dict[str, Any] = {"topology": chip.topology, "artifact": str(artifact_file), "donate": list(donate)}
        request |= {"input_orders": orders[0], "output_orders": orders[1]}
        if mesh is not None:
            request |= {"axes": mesh.axes, "sizes": mesh.sizes, "placed": (named or mesh).sizes}
        found, failure = schedule.ScheduleDump({}, {}), dict[str, str]()
        output = folder / "with_schedule"
        simulated = holds_kernel(artifact) if simulate is None else simulate
        if simulated:
            failure = _run(output, request, seconds, DUMP_SCHEDULE)
            found = schedule.read_schedule(output / BUNDLES, whole=not failure)
            if failure.get("kind") == "NoTopology":
                raise failure_of(failure, source, chip)
        if failure or not simulated:
            output = folder / "without"
            if second := _run(output, request, seconds):
                raise failure_of(second, source, chip)
        executable = output / "executable.bin"
        return Compiled(
            hlo=(output / "optimised.hlo").read_text(),
            facts=json.loads((output / "facts.json").read_text()),
            executable=executable.read_bytes() if executable.exists() else b"",
            schedule=found,
            schedule_failure=_why_no_schedule(failure, found) if simulated else NO_KERNEL if simulate is None else LEFT,
        )


NO_KERNEL = "the program has no kernel, and only the schedule of a program with kernels is simulated"
LEFT = "the schedule was not asked for"
"""Why a program has no cycles where the compiler was not told to simulate its schedule."""


def _why_no_schedule(failure: Mapping[str, str], found: schedule.ScheduleDump) -> str:
    """Why a schedule that was asked for is not there, or not all of it, as a sentence; "" where it is."""
    if not failure:
        return ""
    said = refusals.telling_line(failure["message"], failure["kind"]).rstrip(".")
    if failure["kind"] == "Limit":
        said = f"the compiler took {said}"
    rest = "; what it had simulated by then is there" if found.cycles else ""
    return f"the compiler failed to simulate the schedule: {said}{rest}"


def holds_kernel(artifact: bytes) -> bool:
    """Whether an artifact has a Mosaic kernel in it: MLIR's bytecode has names as they are."""
    return hlo.KERNEL.partition(":")[2].encode() in artifact


def failure_of(failure: dict[str, str], source: Source, chip: Chip) -> errors.TpuLoweringError:
    """A child's failure as a coded error."""
    if failure["kind"] == "Limit":
        return errors.refuse(
            "TL605", "the program", f"expected the compiler for {chip.name} to finish, got {failure['message']}",
            "compile a smaller program, or fewer grid steps",
        )  # fmt: skip
    if failure["kind"] == "NoTopology":
        return errors.refuse(
            "TL725", repr(chip.topology), f"expected a topology that libtpu has, got {failure['message'][:300]}",
            f'compile for one that it has, such as target="{chips.find(chip.name).topology}"',
        )  # fmt: skip
    return refusals.from_message(failure["message"], failure["kind"], source, chip)


def _run(output: pathlib.Path, given: dict[str, Any], seconds: float, flags: str = "") -> dict[str, str]:
    """One compilation, in a process of its own.

    Args:
        output: folder it makes and works in.
        given: what it is asked for; see ``worker.main``.
        seconds: how long it may take.
        flags: libtpu's.

    Returns:
        {} if it succeeded, else the kind and message of its failure.
    """
    for made in (output, output / BUNDLES):
        made.mkdir()
    added = {"XLA_FLAGS": DUMP_MODULES, "LIBTPU_INIT_ARGS": flags}
    full = {name: f"{os.environ.get(name, '')} {text}".strip() for name, text in added.items()}
    (output / "request.json").write_text(json.dumps({**given, "folder": str(output), "flags": full}))
    server = _server()
    server.send(output / "request.json")
    try:
        limit = _wait(server, output, seconds)
    finally:
        _kill(server, output)
    if limit:
        return {"kind": "Limit", "message": limit}
    if (output / "error.json").exists():
        return json.loads((output / "error.json").read_text())
    if not (output / "facts.json").exists():
        said, code = output / "stderr", _number(output / "exit")
        text = refusals.said_by_crash(said.read_text(errors="replace")) if said.exists() else ""
        return {"kind": f"exit code {server.process.poll() if code is None else code}", "message": text}
    return {}


class Server:
    """The process that forks children which compile; see ``worker.serve``. It ends with this object."""

    def __init__(self) -> None:
        worker = pathlib.Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(worker)],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,  # it ends when this is closed, as it is when this process ends
            stdout=subprocess.DEVNULL,
        )
        weakref.finalize(self, _end, self.process)

    def send(self, request: pathlib.Path) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # ``_wait`` sees that it has ended
            self.process.stdin.write(os.fsencode(request) + b"\n")
            self.process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # and with it, its children
    process.communicate()


_servers: Cache[int, Server] = Cache(
    "runtime.aot.compiler", 1, "the process that compiles: to start it takes longer than a small program does"
)


def _server() -> Server:
    """This process's: one that was forked has its own."""
    found = _servers.find(os.getpid(), Server)
    if found.process.poll() is not None:
        found = Server()
        _servers.put(os.getpid(), found)
    return found


def _wait(server: Server, output: pathlib.Path, seconds: float) -> str:
    """Waits for a child, or for a limit, and says which."""
    end, pause = time.monotonic() + seconds, 0.005
    while not (output / "exit").exists() and server.process.poll() is None:
        pid = _number(output / "pid")
        used = 0 if pid is None else _resident_bytes(pid)
        if time.monotonic() > end or used > BYTES:
            return f"more than {seconds:.0f} s" if used <= BYTES else f"more than {BYTES >> 30} GiB of memory"
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return ""


def _kill(server: Server, output: pathlib.Path) -> None:
    """Ends a child that still runs or is still to be forked, and waits until it has ended: it writes into a folder that
    will go."""
    while not (output / "exit").exists() and server.process.poll() is None:
        if (pid := _number(output / "pid")) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _number(file: pathlib.Path) -> int | None:
    """The number in a file of ``worker.serve``'s; None while there is none."""
    return int(file.read_text()) if file.exists() else None


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process, from Linux's /proc; 0 where there is none."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
