"""The processes that run a program together: they agree on it before it runs, and on what went wrong.

All ranks of a mesh have one program. Before a program with collectives runs for the first time, its ranks tell each
other what they have, through torch's store, and compare. Programs without collectives never come here.

What a rank waits for, the others can see; so a rank that waits for one that will never come says so, on all ranks, and
does not hang:

================================================  =========================================================
ranks have other versions, options or programs    TL702, with the first line that differs
a rank refuses its graph                          its refusal, on all ranks
a rank compiles alone, or ranks run in another    TL703: each waits for another
order
a rank is gone, or does not answer                TL704
================================================  =========================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import torch.distributed as dist

from tpu_lowering import compat, errors
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.types import f32
from tpu_lowering.runtime import pulse
from tpu_lowering.runtime.rank_errors import crossed, different, failed, late, stopped
from tpu_lowering.runtime.spread import Spread
from tpu_lowering.session import Cache

Made = TypeVar("Made")
FIRST = "the first program"
PATIENCE = 2.0  # seconds for which a rank waits before it looks whether the others still come

_peers: Cache[Mesh, Peers] = Cache(
    "runtime.peers", 64, "connections between the ranks of a mesh, which live as long as the process"
)


def peers_of(mesh: Mesh) -> Peers:
    """The processes of a mesh, this one among them; connected when they are first needed."""
    return _peers.find(mesh, lambda: Peers(mesh))


@contextlib.contextmanager
def telling(mesh: Mesh) -> Generator[None]:
    """A scope in which a program of a mesh is made; what this rank refuses in it, the others refuse too."""
    if compat.is_fake_group():  # nobody is there to hear it
        yield
        return
    together = peers_of(mesh)
    before = together.programs
    try:
        yield
    except errors.TpuLoweringError as error:
        if together.programs == before:  # the others may still wait for this program
            together.refuse(error)
        raise


@dataclasses.dataclass
class _Box:
    """What a call in another thread gave."""

    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None


class Peers:
    """The processes of a mesh.

    Attributes:
        mesh: the mesh.
        ranks: of torch's default group.
        place: of this process among them.
        others: places of the others.
        programs: how many programs they have agreed on, or tried to.
        calls: how many calls of programs this process has begun.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, ranks = mesh, mesh.ranks
        self.ranks, self.place = ranks, ranks.index(dist.get_rank())
        self.others = [place for place in range(len(ranks)) if place != self.place]
        self.name = f"{mesh} of {ranks}"
        self.seconds = compat.group_seconds()
        self.programs = self.calls = 0
        self.fault: errors.TpuLoweringError | None = None
        self.lock = threading.RLock()
        self.pulse = pulse.own()
        self.jobs: queue.SimpleQueue[tuple[Callable[[], Any], _Box] | None] = queue.SimpleQueue()
        worker = threading.Thread(target=self._work, name="tpu_lowering peers", daemon=True)
        pulse.end_with_process(worker, lambda: self.jobs.put(None))
        self.cluster: compat.Cluster | None = None

    @property
    def store(self) -> pulse.Store:
        """What the ranks of the mesh tell each other."""
        return pulse.Store(f"tpu_lowering/{self.name}")

    @property
    def waits(self) -> pulse.Store:
        """What each rank waits for, of all meshes."""
        return pulse.Store("tpu_lowering/waits")

    def connect(self) -> compat.Cluster:
        """XLA's client of these processes.

        Raises:
            TpuLoweringError: TL703 or TL704 if one does not come.
        """
        if self.cluster is None:
            host = _own_host()
            if self.place == 0:
                self.store.set("address", f"{host}:{free_port(host)}")
            self._meet("hello", "", FIRST)
            address = self.store.get("address").decode()
            count, seconds = len(self.ranks), int(self.seconds)
            made = self._guarded(lambda: compat.Cluster(address, host, self.place, count, seconds), "connecting")
            self._guarded(lambda: _introduce(Spread(self.mesh, tuple(made.devices))), "connecting")
            self._meet("met", "", "connecting")
            made.leave_service()
            self._meet("left", "", "connecting")
            made.end_service()
            self.cluster = made
            return made
        return self.cluster

    def refuse(self, error: errors.TpuLoweringError) -> None:
        """Has the other ranks refuse the next program too."""
        with self.lock:
            self.programs += 1
            self.store.set(f"program/{self.programs}/{self.place}", str(error))

    def agree(self, make: Callable[[], tuple[str, Any]], where: str) -> tuple[int, Any]:
        """Makes a program and compares it with those of the other ranks.

        Args:
            make: gives a text that says all of the program, and the program.
            where: the user's source line of its first collective.

        Returns:
            The program's number, and what ``make`` has made.

        Raises:
            TpuLoweringError: TL702 if they differ, TL703 or TL704 if a rank does not come to the same place; any code
                that ``make`` raises, here or on another rank.
        """
        with self.lock:
            self._raise_again()
            self.programs += 1
            number = self.programs
            name = f"program/{number}"
            try:
                text, made = make()
            except errors.TpuLoweringError:
                self.programs -= 1  # see ``telling``
                raise
            digest = hashlib.sha256(text.encode()).hexdigest()
            said = self._meet(name, digest, f"the making of program {number}")
            for refusal in said.values():
                if refusal.startswith("["):
                    raise errors.TpuLoweringError(refusal)
            if set(said.values()) != {digest}:
                texts = self._meet(f"{name}/text", text, f"the making of program {number}")
                place = next(place for place in self.others if said[place] != digest)
                raise different((self.ranks[self.place], text), (self.ranks[place], texts[place]), where)
            return number, made

    def run(self, program: int, call: Callable[[], Any]) -> Any:
        """Calls a program of these ranks, and waits for what it gives.

        Raises:
            TpuLoweringError: TL703 or TL704 if a rank does not take part.
        """
        with self.lock:
            self._raise_again()
            self.calls += 1
            what, number = f"program {program}", self.calls
            for place, other in self._meet(f"call/{number}", str(program), what, in_call=True).items():
                if other != str(program):
                    raise self._tell(crossed((self.ranks[self.place], what), (self.ranks[place], f"program {other}")))
            if number > 1:  # all ranks are past it
                self.store.delete_key(f"call/{number - 1}/{self.place}")
            return self._guarded(call, what)

    def _meet(self, name: str, said: str, what: str, in_call: bool = False) -> dict[int, str]:
        """Says something under a name, and waits for what the others say; by place."""
        self.store.set(f"{name}/{self.place}", said)
        began = time.monotonic()
        pause = 1e-5
        keys = [f"{name}/{place}" for place in self.others]
        while not self._has(*keys):
            time.sleep(pause)
            pause = min(1.5 * pause, 0.05)
            if time.monotonic() - began > PATIENCE:
                missing = [place for place in self.others if not self._has(f"{name}/{place}")]
                self._look(missing, what, time.monotonic() - began, in_call)
        if time.monotonic() - began > PATIENCE:
            self._stop_waiting()
        return {place: text.decode() for place, text in zip(self.others, self.store.multi_get(keys), strict=True)}

    def _guarded(self, call: Callable[[], Made], what: str) -> Made:
        """Runs something that waits for the other processes in a thread of its own, and looks after them meanwhile."""
        box = _Box()
        self.jobs.put((call, box))
        began = time.monotonic()
        while not box.done.wait(PATIENCE):
            self._look(self.others, what, time.monotonic() - began, True)
        if time.monotonic() - began > PATIENCE:
            self._stop_waiting()
        if box.error is not None:
            raise self._failed(box.error, what) from box.error
        return box.value

    def _look(self, missing: Sequence[int], what: str, waited: float, in_call: bool) -> None:
        """Says what this rank waits for, and raises if it will not come.

        Raises:
            TpuLoweringError: TL703, TL704, or what another rank has found.
        """
        if heard := self._heard():
            raise heard
        next_program = f"program/{self.programs + 1}"
        for place in missing if what == FIRST else ():
            if self._has(f"{next_program}/{place}"):  # it has refused what this rank would connect for
                self.programs += 1
                raise errors.TpuLoweringError(self.store.get(f"{next_program}/{place}").decode())
        counts = {"calls": self.calls, "programs": self.programs}
        mine = {"mesh": self.name, "ranks": self.ranks, "for": what, "in_call": in_call, **counts}
        self.waits.set(str(self.ranks[self.place]), json.dumps(mine))
        if gone := self._gone(missing, what):
            raise gone
        for place in missing:
            rank = str(self.ranks[place])
            found = self.waits.check([rank]) and self.waits.get(rank).decode()
            if found and _is_crossed(mine, theirs := json.loads(found)):
                here, there = what, theirs["for"]
                if theirs["mesh"] != self.name:
                    here, there = f"{here} of the ranks {list(self.ranks)}", f"{there} of the ranks {theirs['ranks']}"
                raise self._tell(crossed((self.ranks[self.place], here), (self.ranks[place], there)))
        if waited > self.seconds:
            raise self._tell(late([self.ranks[place] for place in missing], what, waited))

    def _failed(self, error: BaseException, what: str) -> errors.TpuLoweringError:
        """What a call that raised means: mostly a rank that is gone."""
        end = time.monotonic() + 2 * pulse.SILENCE
        while time.monotonic() < end:
            if found := self._heard() or self._gone(self.others, what):
                return found
            time.sleep(pulse.BEAT)
        return self._tell(failed(what, error))

    def _heard(self) -> errors.TpuLoweringError | None:
        """What another rank has found."""
        if not self._has("fault"):
            return None
        return self._broken(errors.TpuLoweringError(self.store.get("fault").decode()))

    def _gone(self, places: Sequence[int], what: str) -> errors.TpuLoweringError | None:
        """What is to be said if some ranks give no sign of life any more."""
        gone = [self.ranks[place] for place in places if self.pulse.is_gone(self.ranks[place])]
        return self._tell(stopped(gone, what)) if gone else None

    def _tell(self, error: errors.TpuLoweringError) -> errors.TpuLoweringError:
        """Has the other ranks raise an error too."""
        with contextlib.suppress(RuntimeError):  # the store may be gone, with the rank that holds it
            self.store.set("fault", str(error))
        return self._broken(error)

    def _broken(self, error: errors.TpuLoweringError) -> errors.TpuLoweringError:
        self.fault = error
        with contextlib.suppress(RuntimeError):
            self._let_others_hear()
        return error

    def _let_others_hear(self) -> None:
        """The first rank, which mostly holds the store, waits until the others that live have heard of the fault: if it
        ended at once, they would only learn that the store is gone."""
        self.store.set(f"heard/{self.place}", "")
        if dist.get_rank() != 0:
            return
        end = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < end:
            deaf = [place for place in self.others if not self._has(f"heard/{place}")]
            if all(self.pulse.is_gone(self.ranks[place]) for place in deaf):
                return
            time.sleep(0.05)

    def _raise_again(self) -> None:
        if self.fault is not None:
            raise self.fault

    def _has(self, *keys: str) -> bool:
        return bool(self.store.check(list(keys)))

    def _stop_waiting(self) -> None:
        self.waits.set(str(self.ranks[self.place]), "")

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            call, box = job
            try:
                box.value = call()
            except BaseException as error:
                box.error = error
            box.done.set()


def _waits_elsewhere(other: Any) -> bool:
    """Whether a rank waits in another mesh for something that this one has not begun there."""
    if dist.get_rank() not in other["ranks"]:
        return False
    known = [one for _, one in _peers.items() if one.name == other["mesh"]]
    began = known[0] if known else None
    if other["in_call"]:
        return other["calls"] > (began.calls if began else 0)
    return other["programs"] > (began.programs if began else 0)


def _introduce(spread: Spread) -> None:
    """Runs a collective along every set of axes: XLA connects the devices along axes when these first meet, through a
    service that is there for that alone. Of a process that hears nothing from it any more, XLA makes an end."""
    axes = spread.mesh.axes
    lines = [line for count in range(1, len(axes) + 1) for line in itertools.combinations(axes, count)]

    def met(one: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(one, line) for line in lines]

    number = [f32[()]]
    call = spread.jitted(met, number).lower(*spread.specs(number)).compile()
    (own,) = [device for device in spread.devices if device.process_index == device.client.process_index()]
    compat.run_on(call, [jax.device_put(np.ones(1, np.float32), own)])


def _is_crossed(one: Any, other: Any) -> bool:
    """Whether each of two ranks waits for the other, by what they say: what for, in which of its calls, and whether in
    a call or before one."""
    if one["mesh"] != other["mesh"]:
        return _waits_elsewhere(other)
    if one["in_call"] and other["in_call"]:
        return bool(one["calls"] == other["calls"] and one["for"] != other["for"])
    if one["in_call"] == other["in_call"]:
        return False
    calling, agreeing = (one, other) if one["in_call"] else (other, one)
    return bool(calling["calls"] > agreeing["calls"])


def _own_host() -> str:
    """This machine, as the others reach it: by the address from which it reaches the first of them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))
        return str(probe.getsockname()[0])


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
