"""Which item is blamed for the death of a worker. What needs a real cluster is in tests/functional/test_batch_ray.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edge.cluster import Cluster, Done, _Seat, _Work


class RayError(Exception):
    pass


class Machine:
    """A Ray with one worker, which dies over some items, together with all that it has; `begin` starts it again."""

    def __init__(self, deadly: set[bytes], n_at_once: int) -> None:
        self.deadly, self.handed_out = deadly, []
        self.cluster = object.__new__(Cluster)
        self.cluster._ray = SimpleNamespace(get=self.get, nodes=list, exceptions=SimpleNamespace(RayError=RayError))
        self.cluster._n_at_once, self.cluster._n_cpus = n_at_once, None
        self.seat = _Seat("node", machine="m")
        self.cluster._seats = [self.seat]

    def get(self, ref: tuple[int, bytes]) -> bytes:
        if any(data in self.deadly for _, data in self.held):
            raise RayError
        return ref[1] + b" done"

    def hand_out(self, data: bytes) -> tuple[int, bytes]:
        self.handed_out.append(data)
        return len(self.handed_out), data

    def run(self, items: list[tuple[int, bytes]], pick: int) -> list[Done]:
        """Work on items. `pick` says which of the failures and results is heard of first: 0, or -1 for the last."""
        work, found = _Work(iter(items)), []
        while True:
            if self.seat.actor is None:
                self.seat.actor = SimpleNamespace(work=SimpleNamespace(remote=self.hand_out))
            if not self.cluster._hand_out(work):
                return found
            self.held = list(work.results)
            done = self.cluster._finish(work, self.held[pick], "maker", b"")
            found += [done] if done is not None else []


@pytest.mark.parametrize("pick", [0, -1])
@pytest.mark.parametrize("n_at_once", [1, 3])
def test_only_the_item_that_kills_its_worker_is_given_up(pick: int, n_at_once: int) -> None:
    machine = Machine({b"die"}, n_at_once)
    items = [(number, b"die" if number == 3 else b"%d" % number) for number in range(9)]
    found = machine.run(items, pick)
    assert sorted(done.number for done in found) == list(range(9))
    assert {done.number for done in found if done.data is None} == {3}
    assert machine.handed_out.count(b"die") == 3


def test_after_a_death_the_queue_is_used_again() -> None:
    machine = Machine({b"0"}, 1)
    machine.run([(0, b"0"), (1, b"1"), (2, b"2"), (3, b"3")], 0)
    assert machine.handed_out == [b"0", b"1", b"0", b"1", b"0", b"2", b"3"]
