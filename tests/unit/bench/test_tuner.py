"""The search for settings, on machines whose speed is a formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from edge.bench.tuner import Goal, Knob, Outcome, Search, wins
from edge.bench.values import Setting, stat
from edge.errors import BackendError
from tests.unit.bench.fakes import Machine, setting


def knob(field: str, values: Sequence[Any], goal: Goal = "turn") -> Knob:
    return Knob(
        field,
        goal,
        lambda incumbent: [msgspec.structs.replace(incumbent, **{field: value}) for value in values],
        lambda shown: str(getattr(shown, field)),
    )


THREADS = knob("threads", (1, 2, 3, 4, 6, 8), "decode")
BATCHES = knob("n_ubatch", (128, 256, 512, 1024), "prefill")


def search(machine: Machine, knobs: Sequence[Knob], start: Setting | None = None, budget_s: float = 1e9) -> Outcome:
    return Search(machine.measure, lambda: machine.clock() < budget_s).run(start or setting(), knobs)


def cost(given: Setting) -> tuple[float, float]:
    """Best at 2 threads and a batch of 1,024; both effects are real: 20 % and more."""
    return 1.0 + 0.3 * (1024 / given.n_ubatch - 1), 1.0 + 0.25 * abs(given.threads - 2)


def test_finds_the_best_of_each_knob() -> None:
    outcome = search(Machine(cost), (THREADS, BATCHES))
    assert (outcome.best.threads, outcome.best.n_ubatch) == (2, 1024)
    assert outcome.is_complete


@pytest.mark.parametrize("seed", range(8))
def test_finds_it_in_noise_too(seed: int) -> None:
    outcome = search(Machine(cost, noise=0.03, seed=seed), (THREADS, BATCHES))
    assert (outcome.best.threads, outcome.best.n_ubatch) == (2, 1024)


def test_noise_alone_changes_next_to_nothing() -> None:
    """On a machine on which no setting matters, a change is a false alarm. The rule lets few pass."""
    changed = sum(
        search(Machine(lambda s: (1.0, 1.0), noise=0.2, seed=seed), (THREADS, BATCHES)).best != setting() for seed in range(60)
    )
    assert changed <= 12  # of 120 contests


def test_a_gain_below_the_spread_is_left() -> None:
    """3 % are there, and the rounds spread by far more."""

    def slightly(given: Setting) -> tuple[float, float]:
        return 1.0, 0.97 if given.threads == 2 else 1.0

    taken = sum(
        search(Machine(slightly, noise=0.3, seed=seed), (knob("threads", (2,), "decode"),)).best.threads == 2
        for seed in range(40)
    )
    assert taken <= 6
    quiet = search(Machine(slightly), (knob("threads", (2,), "decode"),))
    assert quiet.best.threads == 2


def test_less_than_a_percent_is_not_worth_it() -> None:
    machine = Machine(lambda given: (1.0, 0.995 if given.threads == 2 else 1.0))
    assert search(machine, (knob("threads", (2,), "decode"),)).best == setting()


def test_each_knob_has_its_own_goal() -> None:
    """A batch that reads faster is taken although it writes slower: writing is not what a batch is for."""
    machine = Machine(lambda given: (0.5, 1.2) if given.n_ubatch == 256 else (1.0, 1.0))
    assert search(machine, (BATCHES,)).best.n_ubatch == 256
    assert search(machine, (knob("n_ubatch", (256,), "decode"),)).best.n_ubatch == 512


def test_halving_measures_the_slow_ones_least() -> None:
    machine = Machine(cost)
    search(machine, (THREADS,))
    counts = {n: sum(given.threads == n for given in machine.measured) for n in (1, 2, 3, 6, 8)}
    assert counts[8] == 1
    assert counts[2] >= 5
    assert counts[8] <= counts[6] <= counts[2]


def test_the_time_is_kept() -> None:
    machine = Machine(cost)
    outcome = search(machine, (THREADS, BATCHES), budget_s=30.0)
    assert not outcome.is_complete
    assert machine.clock() < 33.0  # the measurement that was under way is finished
    assert outcome.best.n_ubatch == 512


def test_a_contest_that_was_cut_short_changes_nothing() -> None:
    machine = Machine(cost)
    outcome = search(machine, (THREADS,), budget_s=5.0)
    assert outcome.best == setting()
    assert not outcome.is_complete


def test_what_does_not_run_is_left_out_and_said() -> None:
    def fails(given: Setting) -> tuple[float, float]:
        if given.threads == 2:
            raise BackendError("The engine does not want to.")
        return cost(given)

    outcome = search(Machine(fails), (THREADS,))
    assert outcome.best.threads in (1, 3)  # equally fast
    assert [trial.why for trial in outcome.trials if trial.value == "2"] == ["The engine does not want to."]


def test_the_only_other_one_fails() -> None:
    def fails(given: Setting) -> tuple[float, float]:
        if given.threads == 2:
            raise BackendError("No.")
        return 1.0, 1.0

    outcome = search(Machine(fails), (knob("threads", (2,), "decode"),))
    assert outcome.best == setting()
    assert outcome.is_complete


def test_an_incumbent_that_fails() -> None:
    def fails(given: Setting) -> tuple[float, float]:
        raise BackendError("Broken.")

    with pytest.raises(BackendError, match="Broken"):
        search(Machine(fails), (THREADS,))


def test_trials_tell_what_was_measured() -> None:
    outcome = search(Machine(cost), (knob("threads", (2,), "decode"),))
    (trial,) = outcome.trials
    assert trial.is_taken
    assert (trial.knob, trial.value, trial.incumbent, trial.n_rounds) == ("threads", "2", "4", 5)
    assert trial.gain == pytest.approx(0.5)
    assert trial.spread == pytest.approx(0.0)


def test_no_alternative_costs_no_time() -> None:
    machine = Machine(cost)
    outcome = search(machine, (knob("threads", (4,)), knob("n_ubatch", ())))
    assert machine.measured == []
    assert outcome.best == setting()


def test_a_gain_in_every_round_counts_however_much_they_spread() -> None:
    """Other programs slow down the one engine by 1.2, 1.8 and 17 times the time of the other."""
    assert wins(stat([1.2, 1.8, 17.0]), 0.05)
    assert not wins(stat([0.9, 1.8, 17.0]), 0.05)
    assert not wins(stat([1.02, 1.8, 17.0]))


def test_three_rounds_decide_where_time_is_short() -> None:
    """A round takes 3.5 seconds. With fewer than three of them nothing is decided."""
    slow = Machine(lambda given: (0.5, 0.5) if given.backend == "openvino" else (1.25, 1.25))
    engines = knob("backend", ("openvino",))
    outcome = search(slow, (engines,), budget_s=12.0)
    assert (outcome.best.backend, outcome.is_complete) == ("openvino", True)
    slow.clock.now = 0.0
    outcome = search(slow, (engines,), budget_s=6.0)
    assert (outcome.best.backend, outcome.is_complete) == ("llamacpp", False)
