"""Work on the machines of an existing Ray cluster: items go to workers, a process each, and outlive the death of a machine.

Ray starts the processes and carries bytes; what a worker does is named as "module:function", which every machine imports from
its own installation.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edge.errors import BackendError, BackendUnavailableError, EdgeError
from edge.registry import load_entry

__all__ = ["Cluster", "Done", "connect"]

_WAIT_S = 1.0
_START_S = 600.0
"""Longest time that no worker starts and none works, before that is an error: a model may have to be downloaded."""
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Done:
    """An item that was worked on.

    Attributes:
        number: of the item.
        data: what its worker returned; None if every worker that tried it died.
        machine: name of the machine.
    """

    number: int
    data: bytes | None
    machine: str = ""


def connect(address: str) -> tuple[Any, bool]:
    """Connect to a cluster, unless this process is connected already.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or "auto" for the one that runs on this machine.

    Returns:
        The module `ray`, and whether this call connected, so that the caller disconnects with `ray.shutdown()`.

    Raises:
        BackendUnavailableError: Ray is not installed, or there is no cluster at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailableError("Ray is not installed.", "pip install 'edge-assistant[ray]'") from error
    is_ours = not ray.is_initialized()
    try:
        _check_listens(address)
        if is_ours:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise BackendUnavailableError(
            f"There is no Ray cluster at {address}: {error}.", "Start one with: ray start --head"
        ) from error
    return ray, is_ours


def _check_listens(address: str) -> None:
    """Raise OSError if nobody listens at an address; Ray itself tries for minutes. For "auto" it looks in its own files."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@dataclass(slots=True, eq=False)
class _Seat:
    """A place for a worker, on one machine.

    Attributes:
        node: id of the machine.
        actor: the worker; None once its machine is gone.
        starting: becomes the machine's name, or the worker's error, once it has started; None then.
        items: numbers of the items that it has.
        machine: its name.
    """

    node: str
    actor: Any = None
    starting: Any = None
    items: set[int] = field(default_factory=set)
    machine: str = ""


class Cluster:
    """The machines of a Ray cluster. Use it in a `with` block: leaving it ends the workers, and the cluster keeps running.

    Args:
        address: see `connect`.
        n_cpus: CPUs of a worker; each machine has as many workers as that allows. None is one worker a machine.
        n_at_once: items that a worker works on at the same time.

    Raises:
        BackendUnavailableError: as `connect`, or no machine has CPUs enough.
    """

    def __init__(self, address: str, *, n_cpus: int | None = None, n_at_once: int = 1) -> None:
        self._ray, self._is_ours = connect(address)
        self._n_cpus, self._n_at_once = n_cpus, n_at_once
        self._seats = [
            _Seat(node["NodeID"])
            for node in self._ray.nodes()
            if node["Alive"]
            for _ in range(self._workers_of(node["Resources"].get("CPU", 0)))
        ]
        if not self._seats:
            self.close()
            raise BackendUnavailableError(
                f"No machine of the cluster at {address} has {n_cpus or 1} CPUs for Ray.", "Ask for fewer: --threads 1"
            )

    @property
    def n_workers(self) -> int:
        """Number of workers."""
        return len(self._seats)

    def _workers_of(self, n_cpus: float) -> int:
        return int(n_cpus >= 1) if self._n_cpus is None else int(n_cpus // self._n_cpus)

    def map(self, maker: str, options: bytes, items: Iterable[tuple[int, bytes]]) -> Iterator[Done]:
        """Have the workers work on items, and yield results as they come.

        An item whose worker or machine dies goes to another one. A machine that is gone is not waited for, and a worker that
        died on one that still runs is started again.

        Args:
            maker: "module:function", called in each worker's process with `options`; returns what turns the data of an item
                into a result. It may raise an EdgeError: no other worker would do better.
            options: for it.
            items: (number, data), in the order in which they are begun; read as it goes.

        Raises:
            BackendError: all machines are gone, or no worker starts.
            EdgeError: a worker's own, when it starts.
        """
        work = _Work(iter(items))
        for seat in self._seats:
            self._start(seat, maker, options)
        active_at = time.monotonic()
        while self._hand_out(work):
            waiting = [*work.results, *(seat.starting for seat in self._seats if seat.starting is not None)]
            if not waiting:
                raise BackendError("All machines of the cluster are gone.", "The same command goes on where it was.")
            done, _ = self._ray.wait(waiting, num_returns=1, timeout=_WAIT_S)
            if done or work.results:
                active_at = time.monotonic()
            elif time.monotonic() - active_at > _START_S:
                raise BackendError("No worker starts on the cluster.", "Does it have free CPUs? See: ray status")
            for ref in done:
                finished = self._finish(work, ref, maker, options)
                if finished is not None:
                    yield finished

    def _start(self, seat: _Seat, maker: str, options: bytes) -> None:
        """Start the worker of a seat, without waiting."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(seat.node, soft=False)
        kind = self._ray.remote(
            num_cpus=self._n_cpus or 1, max_concurrency=self._n_at_once, max_restarts=0, scheduling_strategy=place
        )(_Worker)
        seat.actor = kind.remote(maker, options)
        seat.starting = seat.actor.start.remote()

    def _hand_out(self, work: _Work) -> bool:
        """Give items to workers that have room, one more than they work on; return whether there is work left."""
        for seat in self._seats:
            while seat.actor is not None and seat.starting is None and self._has_room(work, seat):
                found = work.next()
                if found is None:
                    break
                number, data = found
                work.results[seat.actor.work.remote(data)] = (seat, number, data)
                seat.items.add(number)
        return bool(work.results) or work.has_more()

    def _has_room(self, work: _Work, seat: _Seat) -> bool:
        """Tell if a worker can be given the next item. One whose worker died is worked on alone: only so can it be blamed."""
        if work.again or any(map(work.has_failed, seat.items)):
            return not seat.items
        return len(seat.items) <= self._n_at_once

    def _finish(self, work: _Work, ref: Any, maker: str, options: bytes) -> Done | None:
        """Take a result, or the start of a worker."""
        found = work.results.get(ref)
        seat = found[0] if found is not None else next((one for one in self._seats if one.starting is ref), None)
        if seat is None:
            return None  # the start of a worker that has died since
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayError:
            return self._replace(work, seat, maker, options)
        if found is None:
            seat.starting = None
            if isinstance(value, EdgeError):
                raise value
            seat.machine = value
            return None
        del work.results[ref]
        seat.items.discard(found[1])
        return Done(found[1], value, seat.machine)

    def _replace(self, work: _Work, seat: _Seat, maker: str, options: bytes) -> Done | None:
        """Take back the items of a worker that died, and start another one if its machine still runs."""
        lost = {ref: one for ref, one in work.results.items() if one[0] is seat}
        seat.items.clear()
        seat.actor = seat.starting = None
        if any(node["NodeID"] == seat.node and node["Alive"] for node in self._ray.nodes()):
            self._start(seat, maker, options)
        given_up = None
        for ref, (_, number, data) in lost.items():
            del work.results[ref]
            if not work.may_try_again(number) and len(lost) == 1:
                given_up = Done(number, None, seat.machine)
            else:
                work.again.append((number, data))
        return given_up

    def close(self) -> None:
        """End the workers, and leave the cluster, which keeps running. May be called twice."""
        for seat in self._seats:
            if seat.actor is not None:
                with contextlib.suppress(Exception):  # its machine is gone, or the cluster
                    self._ray.kill(seat.actor)
                seat.actor = None
        if self._is_ours:
            self._is_ours = False
            self._ray.shutdown()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_Found = tuple[_Seat, int, bytes]


class _Work:
    """The items that wait and those that are being worked on.

    Attributes:
        results: what will be a result -> the worker, the number and the data of its item.
        again: items whose worker died.
    """

    def __init__(self, items: Iterator[tuple[int, bytes]]) -> None:
        self.results: dict[Any, _Found] = {}
        self.again: deque[tuple[int, bytes]] = deque()
        self._items = items
        self._read: deque[tuple[int, bytes]] = deque()
        self._n_tries: dict[int, int] = {}

    def next(self) -> tuple[int, bytes] | None:
        """Return the next item; None if there is none."""
        if self.again:
            return self.again.popleft()
        return self._read.popleft() if self.has_more() else None

    def has_more(self) -> bool:
        """Tell if there are items that nobody has yet."""
        if not self._read and (found := next(self._items, None)) is not None:
            self._read.append(found)
        return bool(self.again or self._read)

    def may_try_again(self, number: int) -> bool:
        """Note that a worker that had an item died, and return whether another one may try it."""
        self._n_tries[number] = self._n_tries.get(number, 0) + 1
        return self._n_tries[number] < _TRIES

    def has_failed(self, number: int) -> bool:
        """Tell if a worker that had an item died."""
        return number in self._n_tries


class _Worker:
    """A worker in a process of its own; Ray makes it."""

    def __init__(self, maker: str, options: bytes) -> None:
        self._maker, self._options = maker, options
        self._work: Callable[[bytes], bytes] | None = None

    def start(self) -> str | EdgeError:
        """Make what works, and return the machine's name, or the error."""
        try:
            self._work = load_entry(self._maker)(self._options)
        except EdgeError as error:
            return error
        return socket.gethostname()

    def work(self, data: bytes) -> bytes:
        assert self._work is not None
        return self._work(data)
