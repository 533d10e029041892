"""Which item is blamed for the death of a worker. What needs a real cluster is in tests/functional/test_batch_ray.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edge.cluster import Cluster, Done, _Seat, _Work


class RayError(Exception):
    pass


def fake_ray(finished: set[str]) -> Any:
    """A Ray whose machines are all gone, and that knows the results of some items."""

    def get(ref: str, timeout: float | None = None) -> bytes:
        if ref not in finished:
            raise RayError(ref)
        return b"done"

    return SimpleNamespace(get=get, nodes=list, exceptions=SimpleNamespace(RayError=RayError))


def lose(cluster: Cluster, work: _Work, noticed: str, n_finished: int = 0) -> Done | None:
    """Give a worker the items 0 to 3, and let it die; `noticed` is the failure that is heard of first."""
    seat = _Seat("node", actor="worker", items={0, 1, 2, 3}, machine="m")
    work.results = {f"ref{number}": (seat, number, b"%d" % number) for number in range(4)}
    work.again.clear()
    cluster._ray = fake_ray({f"ref{number}" for number in range(n_finished)})
    return cluster._finish(work, noticed, "maker", b"")


@pytest.fixture
def cluster() -> Cluster:
    cluster = object.__new__(Cluster)
    cluster._seats, cluster._n_at_once, cluster._n_cpus = [], 1, None
    return cluster


@pytest.mark.parametrize("noticed", ["ref0", "ref1", "ref3"])
def test_the_item_that_was_being_worked_on_is_given_up_whichever_failure_is_heard_of_first(
    cluster: Cluster, noticed: str
) -> None:
    work = _Work(iter(()))
    assert lose(cluster, work, noticed) is None
    assert [number for number, _ in work.again] == [0, 1, 2, 3]
    assert lose(cluster, work, noticed) is None
    assert lose(cluster, work, noticed) == Done(0, None, "m")
    assert [number for number, _ in work.again] == [1, 2, 3]
    assert not work.results


def test_an_item_that_was_finished_before_is_neither_blamed_nor_lost(cluster: Cluster) -> None:
    work = _Work(iter(()))
    for _ in range(2):
        assert lose(cluster, work, "ref3", n_finished=1) is None
    assert lose(cluster, work, "ref3", n_finished=1) == Done(1, None, "m")
    assert list(work.results) == ["ref0"]
    assert cluster._finish(work, "ref0", "maker", b"") == Done(0, b"done", "m")


def test_of_several_at_once_the_one_that_failed_is_given_up(cluster: Cluster) -> None:
    cluster._n_at_once = 2
    work = _Work(iter(()))
    for _ in range(2):
        assert lose(cluster, work, "ref1") is None
    assert lose(cluster, work, "ref1") == Done(1, None, "m")
