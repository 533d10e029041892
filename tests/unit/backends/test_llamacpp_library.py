"""Settings made before llama.cpp is loaded."""

from __future__ import annotations

import pytest

from edge.backends.llamacpp.library import limit_spinning


def test_threads_wait_for_a_bounded_time() -> None:
    environ = {"HOME": "/home/me"}
    limit_spinning(environ)
    assert environ["OMP_WAIT_POLICY"] == "PASSIVE"
    # GNU's library spins 30,000,000,000 times for ACTIVE, 300,000 by default and not at all for PASSIVE.
    assert 1_000 <= int(environ["GOMP_SPINCOUNT"]) < 100_000


@pytest.mark.parametrize("decided", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}])
def test_what_the_user_decided_stays(decided: dict[str, str]) -> None:
    environ = dict(decided)
    limit_spinning(environ)
    assert environ == decided
