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

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from tpu_lowering import compat, errors
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.runtime.rank_errors import crossed, different, failed, late, stopped
from tpu_lowering.session import Cache

Made = TypeVar("Made")
PATIENCE = 2.0  # seconds for which a rank waits before it looks whether the others still come
BEAT = 0.5  # seconds between two signs of life
SILENCE = 8 * BEAT  # of a rank that is gone

_peers: Cache[tuple[tuple[int, ...], int], Peers] = Cache(
    "runtime.peers", 64, "connections between the ranks of a mesh, which live as long as the process"
)


def peers_of(mesh: Mesh) -> Peers:
    """The processes of a mesh, this one among them; connected when they are first needed."""
    store = compat.store()
    return _peers.find((mesh.ranks, id(store)), lambda: Peers(mesh.ranks, store))


@contextlib.contextmanager
def telling(mesh: Mesh) -> Generator[None]:
    """A scope in which a program of a mesh is made; what this rank refuses in it, the others refuse too."""
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
    """The processes of some ranks.

    Attributes:
        ranks: of torch's default group.
        place: of this process among them.
        programs: how many programs they have agreed on, or tried to.
        calls: how many calls of programs this process has begun.
    """

    def __init__(self, ranks: tuple[int, ...], store: Any) -> None:
        self.ranks, self.place = ranks, ranks.index(dist.get_rank())
        self.store = dist.PrefixStore(f"tpu_lowering/{'-'.join(map(str, ranks))}", store)
        self.seconds = compat.group_seconds()
        self.programs = self.calls = 0
        self.fault: errors.TpuLoweringError | None = None
        self.lock = threading.RLock()
        self.beats: dict[int, tuple[bytes, float]] = {}
        self.jobs: queue.SimpleQueue[tuple[Callable[[], Any], _Box]] = queue.SimpleQueue()
        for work in (self._beat, self._work):
            threading.Thread(target=work, name="tpu_lowering peers", daemon=True).start()
        self.cluster: compat.Cluster | None = None

    def connect(self) -> compat.Cluster:
        """XLA's client of these processes.

        Raises:
            TpuLoweringError: TL703 or TL704 if one does not come.
        """
        if self.cluster is None:
            host = _own_host()
            if self.place == 0:
                self.store.set("address", f"{host}:{_free_port(host)}")
            self._meet("hello", [place for place in range(len(self.ranks)) if place != self.place], "")
            address = self.store.get("address").decode()
            count, seconds = len(self.ranks), int(self.seconds)
            made = self._guarded(lambda: compat.Cluster(address, host, self.place, count, seconds), "connecting")
            self.cluster = made
            atexit.register(self._leave)
            return made
        return self.cluster

    def refuse(self, error: errors.TpuLoweringError) -> None:
        """Has the other ranks refuse the next program too."""
        with self.lock:
            self.programs += 1
            self.store.set(f"what is program {self.programs}/{self.place}", json.dumps({"refused": str(error)}))

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
            name = f"what is program {number}"
            try:
                text, made = make()
            except errors.TpuLoweringError:
                self.programs -= 1  # see ``telling``
                raise
            digest = hashlib.sha256(text.encode()).hexdigest()
            self.store.set(f"{name}/text/{digest}", text)
            others = [place for place in range(len(self.ranks)) if place != self.place]
            said = self._meet(name, others, json.dumps({"digest": digest}))
            for place in others:
                if "refused" in said[place]:
                    raise errors.TpuLoweringError(said[place]["refused"])
            for place in others:
                if said[place]["digest"] != digest:
                    other = self.store.get(f"{name}/text/{said[place]['digest']}").decode()
                    raise different((self.ranks[self.place], text), (self.ranks[place], other), where)
            return number, made

    def run(self, program: int, call: Callable[[], Any]) -> Any:
        """Calls a program of these ranks, and waits for what it gives.

        Raises:
            TpuLoweringError: TL703 or TL704 if a rank does not take part.
        """
        with self.lock:
            self._raise_again()
            self.calls += 1
            return self._guarded(call, f"program {program}")

    def _meet(self, name: str, others: Sequence[int], said: str) -> dict[int, Any]:
        """Says something under a name, and waits for what the others say; by place."""
        self.store.set(f"{name}/{self.place}", said)
        began = time.monotonic()
        pause = 0.001
        missing = list(others)
        while missing := [place for place in missing if not self._has(f"{name}/{place}")]:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            if time.monotonic() - began > PATIENCE:
                self._look(missing, name, time.monotonic() - began, False)
        self._stop_waiting()
        texts = {place: self.store.get(f"{name}/{place}").decode() for place in others}
        return {place: json.loads(text) for place, text in texts.items() if text}

    def _guarded(self, call: Callable[[], Made], what: str) -> Made:
        """Runs something that waits for the other processes in a thread of its own, and looks after them meanwhile."""
        box = _Box()
        self.jobs.put((call, box))
        began = time.monotonic()
        others = [place for place in range(len(self.ranks)) if place != self.place]
        while not box.done.wait(PATIENCE):
            self._look(others, what, time.monotonic() - began, True)
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
        if self._has("fault"):
            raise self._broken(errors.TpuLoweringError(self.store.get("fault").decode()))
        mine = {"for": what, "calls": self.calls, "in_call": in_call}
        self.store.set(f"waits/{self.place}", json.dumps(mine))
        gone = [place for place in missing if self._is_gone(place)]
        if gone:
            raise self._tell(stopped([self.ranks[place] for place in gone], what))
        for place in missing:
            found = self._has(f"waits/{place}") and self.store.get(f"waits/{place}").decode()
            if found and _is_crossed(mine, theirs := json.loads(found)):
                raise self._tell(crossed((self.ranks[self.place], what), (self.ranks[place], theirs["for"])))
        if waited > self.seconds:
            raise self._tell(late([self.ranks[place] for place in missing], what, waited))

    def _is_gone(self, place: int) -> bool:
        """Whether a rank that gave signs of life gives none any more."""
        if not self._has(f"beat/{place}"):
            return False
        beat, now = self.store.get(f"beat/{place}"), time.monotonic()
        known = self.beats.get(place)
        if known is None or known[0] != beat:
            self.beats[place] = (beat, now)
            return False
        return now - known[1] > SILENCE

    def _failed(self, error: BaseException, what: str) -> errors.TpuLoweringError:
        """What a call that raised means: mostly a rank that is gone."""
        if self._has("fault"):
            return self._broken(errors.TpuLoweringError(self.store.get("fault").decode()))
        others = [place for place in range(len(self.ranks)) if place != self.place]
        end = time.monotonic() + 2 * SILENCE
        while time.monotonic() < end:
            gone = [place for place in others if self._is_gone(place)]
            if gone:
                return self._tell(stopped([self.ranks[place] for place in gone], what))
            if self._has("fault"):
                return self._broken(errors.TpuLoweringError(self.store.get("fault").decode()))
            time.sleep(BEAT)
        return self._tell(failed(what, error))

    def _tell(self, error: errors.TpuLoweringError) -> errors.TpuLoweringError:
        """Has the other ranks raise an error too."""
        with contextlib.suppress(RuntimeError):  # the store may be gone, with the rank that holds it
            self.store.set("fault", str(error))
        return self._broken(error)

    def _broken(self, error: errors.TpuLoweringError) -> errors.TpuLoweringError:
        self.fault = error
        return error

    def _raise_again(self) -> None:
        if self.fault is not None:
            raise self.fault

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError as error:
            holder = f"the process that holds torch's store ({str(error).splitlines()[0]})"
            raise self._broken(stopped([holder], "a message to the other ranks")) from error

    def _stop_waiting(self) -> None:
        self.store.set(f"waits/{self.place}", "")

    def _beat(self) -> None:
        """Gives signs of life until the process ends."""
        number = 0
        while self.fault is None:
            number += 1
            try:
                self.store.set(f"beat/{self.place}", f"{os.getpid()} {number}")
            except RuntimeError:
                return
            time.sleep(BEAT)

    def _work(self) -> None:
        while True:
            call, box = self.jobs.get()
            try:
                box.value = call()
            except BaseException as error:
                box.error = error
            box.done.set()

    def _leave(self) -> None:
        if self.cluster is not None and self.fault is None:
            self.cluster.leave()


def _is_crossed(one: Any, other: Any) -> bool:
    """Whether each of two ranks waits for the other, by what they say: what for, in which of its calls, and whether in
    a call or before one."""
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


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
