"""The processes that hold libtpu: this file is run, and forks a child for each request.

One compilation a process, because libtpu may abort, and because its dump flags are read once. Importing JAX takes
longer than compiling a small program does: it is done once, before the forks, and starts no thread. This file imports
nothing of this package, and a child writes what it found beside its request.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pathlib
import select
import signal
import sys
import time
import traceback
import warnings
from typing import Any

BEAT = 0.02  # seconds between two looks at children that run


def serve() -> None:
    """Forks a child for each path of a request, a line of the standard input, until that is closed."""
    warnings.filterwarnings("ignore", message=r"os\.fork")  # JAX's, which has no thread here yet
    for module in ("jax", "jax.export", "jax.experimental.topologies"):
        importlib.import_module(module)
    folders: dict[int, pathlib.Path] = {}
    rest = b""
    while True:
        if select.select([0], [], [], BEAT if folders else None)[0]:
            read = os.read(0, 1 << 16)
            if not read:
                return  # whoever started this has ended
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                path = pathlib.Path(os.fsdecode(line))
                folders[fork(path)] = path.parent
        while folders:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            write(folders.pop(pid) / "exit", str(os.waitstatus_to_exitcode(status)))


def fork(path: pathlib.Path) -> int:
    """Compiles a request in a child, which ends with this process; writes the child's ``pid`` beside the request, where
    its ``exit`` code will be."""
    pid = os.fork()
    if pid:
        write(path.with_name("pid"), str(pid))
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        said = os.open(path.with_name("stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(path.parent)
        main(path)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # libtpu takes half a second to take itself apart


PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>: the signal for a process whose parent has ended


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file at once; none where the folder is gone, since nobody waits for it any more."""
    with contextlib.suppress(FileNotFoundError):
        path.with_suffix(".part").write_text(text)
        path.with_suffix(".part").replace(path)


def main(path: pathlib.Path) -> None:
    """Compiles a request.

    The request has ``topology``, ``artifact`` (a serialised ``jax.export`` program), ``donate`` (positions), and
    ``folder``, below which XLA was told to dump modules. A request for all devices of the topology has ``axes`` and
    ``sizes`` of the mesh that the program was exported for, and ``placed``: the sizes of a mesh of as many devices, in
    the same order, that JAX is to place on the torus; and ``flags``: variables of the environment that XLA and libtpu
    read when they are first used. Into the folder go ``facts.json``, ``optimised.hlo`` and, where libtpu can write it,
    ``executable.bin``; or ``error.json``.
    """
    request = json.loads(path.read_text())
    folder = pathlib.Path(request["folder"])
    os.environ.update(request["flags"])
    try:
        facts = compile_request(request, folder)
        (folder / "facts.json").write_text(json.dumps(facts))
    except Exception as error:
        text = {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        (folder / "error.json").write_text(json.dumps(text))


def compile_request(request: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Compiles for the topology's first device, or for all of them; returns the facts."""
    import jax
    import jax.export
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=request["topology"])
    except Exception as error:
        raise NoTopology(str(error)) from error
    device = topology.devices[0]
    with jax.enable_x64(True):
        exported = jax.export.deserialize(bytearray(pathlib.Path(request["artifact"]).read_bytes()))
        inputs: Any = [None] * len(exported.in_avals)
        outputs: Any = None
        places: list[list[int]] = []
        if "axes" in request:
            mesh = mesh_of(request, topology.devices)
            inputs = exported.in_shardings_jax(mesh)
            outputs = jax.tree.unflatten(exported.out_tree, exported.out_shardings_jax(mesh))
            places = [[*one.coords, one.core_on_chip] for one in mesh.devices.flat]
        else:
            inputs = [placed(device, order) for order in request["input_orders"] or [None] * len(inputs)]
            outputs = [placed(device, order) for order in request["output_orders"] or [None] * len(exported.out_avals)]
            outputs = jax.tree.unflatten(exported.out_tree, outputs)
        pairs = zip(exported.in_avals, inputs, strict=True)
        specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding) for aval, sharding in pairs]
        jitted = jax.jit(exported.call, donate_argnums=tuple(request["donate"]), out_shardings=outputs)
        lowered = jitted.trace(*specs).lower(lowering_platforms=("tpu",))
        began, cpu_began = time.perf_counter(), time.process_time()
        compiled = lowered.compile()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    (folder / "optimised.hlo").write_text(text_of(compiled, folder))
    memory = compiled.memory_analysis()
    fields = ("argument", "output", "temp", "alias", "generated_code")
    facts: dict[str, Any] = {f"{name}_bytes": int(getattr(memory, f"{name}_size_in_bytes")) for name in fields}
    facts["peak_bytes"] = int(getattr(memory, "peak_memory_in_bytes", 0))
    facts["device_kind"] = device.device_kind
    facts["devices"] = len(topology.devices)
    facts["places"] = places
    facts["compile_seconds"], facts["compile_cpu_seconds"] = seconds, cpu_seconds
    facts["serialised"] = write_executable(compiled, folder)
    return facts


def placed(device: Any, order: list[int] | None) -> Any:
    """Where an array lies: on a device, with its dimensions in an order in memory; None for what JAX would choose."""
    import jax
    from jax.experimental.layout import Format, Layout

    sharding = jax.sharding.SingleDeviceSharding(device)
    return sharding if order is None else Format(Layout(tuple(order)), sharding)


def mesh_of(request: dict[str, Any], devices: Any) -> Any:
    """The devices, as JAX places a mesh on the torus; in libtpu's order where it places none, as on v4's cores."""
    import jax
    import numpy
    from jax.experimental import mesh_utils

    if devices[0].device_kind == "TPU v4":
        placed = numpy.array(devices)
    else:
        placed = mesh_utils.create_device_mesh(request["placed"], devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed.reshape(request["sizes"]), tuple(request["axes"]))


class NoTopology(Exception):
    """libtpu has no such topology."""


def text_of(compiled: Any, folder: pathlib.Path) -> str:
    """The optimised HLO text; that of XLA's dump where XLA cannot print it: it fails to read back an operation that
    runs on the SparseCore (an ``async-update`` with several operands), as gathers and sorts of a certain size do."""
    try:
        return str(compiled.as_text())
    except Exception:
        return max(folder.glob("*/*.after_codegen.txt"), key=lambda file: file.stat().st_size).read_text()


def write_executable(compiled: Any, folder: pathlib.Path) -> str:
    """Writes the executable, if libtpu can serialise it; returns "" or why it could not."""
    try:
        (folder / "executable.bin").write_bytes(compiled.runtime_executable().serialize())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    serve()
