"""The search for better settings: one knob after the other, and for each knob a contest by successive halving.

The setting that stands takes part in every round, so each round gives a ratio in which whatever else the machine did has
dropped out. Half of the others leave after each heat, while the number of rounds doubles. The last one takes the place of the
setting that stands only if it wins by more than the spread of those ratios. Nothing here knows what an engine is, or the time.

Source: successive halving as in Jamieson and Talwalkar, 2016; coordinate descent.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edge.bench.values import Sample, Setting, Stat, stat
from edge.errors import EdgeError

__all__ = ["MIN_GAIN", "Knob", "Outcome", "Search", "Trial", "turn_seconds", "wins"]

MIN_GAIN = 0.01
"""Less than this is not worth another setting, however sure it is."""
_FINAL_ROUNDS = 5
_LOST_AFTER = 3  # rounds in the final without a single win

Goal = Literal["decode", "prefill", "turn"]


@dataclass(frozen=True)
class Knob:
    """Something that can be set.

    Attributes:
        name: for people: "threads".
        goal: which time it is meant to shorten.
        others: the settings that differ from a given one in this knob only.
        show: how a setting's value of it is written.
    """

    name: str
    goal: Goal
    others: Callable[[Setting], list[Setting]]
    show: Callable[[Setting], str]


@dataclass(frozen=True)
class Trial:
    """What came of one value of a knob.

    Attributes:
        knob: its name.
        value: what was tried; `stood` is what stood.
        n_rounds: how often it was measured.
        gain: median speed over that of the setting that stood, less 1; None where it was not measured.
        spread: distance of the quartiles of that ratio.
        is_taken: it took the other's place.
        why: in words.
    """

    knob: str
    value: str
    stood: str
    n_rounds: int
    gain: float | None
    spread: float | None
    is_taken: bool
    why: str


@dataclass(frozen=True)
class Outcome:
    """The end of a search.

    Attributes:
        best: the setting that stands; the one it began with where nothing was better.
        trials: everything tried, in order.
        is_complete: every knob was tried before time ran out.
    """

    best: Setting
    trials: tuple[Trial, ...]
    is_complete: bool


class _OutOfTimeError(Exception):
    pass


@dataclass
class Search:
    """See the module.

    Args:
        measure: measures a setting once. An EdgeError means that it cannot be had.
        has_time: asked before every measurement.
        on_step: told what is tried.
    """

    measure: Callable[[Setting], Sample]
    has_time: Callable[[], bool]
    on_step: Callable[[str], None] = lambda text: None
    _trials: list[Trial] = field(default_factory=list)

    def run(self, start: Setting, knobs: Sequence[Knob]) -> Outcome:
        """Try one knob after the other, from a setting that works.

        Raises:
            EdgeError: the setting that stands could not be measured.
        """
        best = start
        try:
            for knob in knobs:
                best = self._turn(knob, best)
        except _OutOfTimeError:
            return Outcome(best, tuple(self._trials), is_complete=False)
        return Outcome(best, tuple(self._trials), is_complete=True)

    def _turn(self, knob: Knob, stands: Setting) -> Setting:
        """One knob: the setting that stands afterwards."""
        contest = _Contest(knob, stands, knob.others(stands))
        n_rounds = 1
        while len(contest.left) > 1:
            self._heat(contest, n_rounds)
            contest.halve(self._trials)
            n_rounds *= 2
        if not contest.left:
            return stands
        last = contest.left[0]
        while contest.left and contest.n_rounds(last) < _FINAL_ROUNDS and not contest.is_lost(last):
            self._heat(contest, 1)
        return contest.decide(self._trials)

    def _heat(self, contest: _Contest, n_rounds: int) -> None:
        for _ in range(n_rounds):
            order = [contest.stands, *contest.left]
            for setting in order if contest.round % 2 == 0 else reversed(order):
                if not self.has_time():
                    raise _OutOfTimeError
                self.on_step(f"{contest.knob.name}: {contest.knob.show(setting)}")
                try:
                    sample = self.measure(setting)
                except EdgeError as error:
                    if setting == contest.stands:
                        raise
                    contest.drop(setting, error, self._trials)
                else:
                    contest.times[setting][contest.round] = turn_seconds(sample, contest.knob.goal)
            contest.round += 1


class _Contest:
    def __init__(self, knob: Knob, stands: Setting, others: Sequence[Setting]) -> None:
        self.knob, self.stands = knob, stands
        self.left = [setting for setting in dict.fromkeys(others) if setting != stands]
        self.times: dict[Setting, dict[int, float]] = {setting: {} for setting in [stands, *self.left]}
        self.round = 0

    def n_rounds(self, setting: Setting) -> int:
        return len(self.times[setting])

    def ratios(self, setting: Setting) -> Stat | None:
        mine, theirs = self.times[setting], self.times[self.stands]
        shared = [n for n in mine if n in theirs]
        return stat([theirs[n] / mine[n] for n in shared]) if shared else None

    def is_lost(self, setting: Setting) -> bool:
        """It has not won a single round by now."""
        ratios = self.ratios(setting)
        return ratios is not None and self.n_rounds(setting) >= _LOST_AFTER and ratios.max <= 1 + MIN_GAIN

    def halve(self, trials: list[Trial]) -> None:
        self.left.sort(key=lambda setting: statistics.median(self.times[setting].values()))
        keep = -(-len(self.left) // 2) if len(self.left) > 1 else len(self.left)
        trials += [self._trial(setting, is_taken=False, why="others were faster") for setting in self.left[keep:]]
        self.left = self.left[:keep]

    def drop(self, setting: Setting, error: EdgeError, trials: list[Trial]) -> None:
        self.left.remove(setting)
        trials.append(self._trial(setting, is_taken=False, why=error.message))

    def decide(self, trials: list[Trial]) -> Setting:
        if not self.left:
            return self.stands
        last = self.left[0]
        ratios = self.ratios(last)
        is_taken = ratios is not None and wins(ratios)
        why = "faster by more than the spread" if is_taken else "not faster by more than the spread"
        trials.append(self._trial(last, is_taken=is_taken, why=why))
        return last if is_taken else self.stands

    def _trial(self, setting: Setting, *, is_taken: bool, why: str) -> Trial:
        ratios, show = self.ratios(setting), self.knob.show
        return Trial(
            knob=self.knob.name,
            value=show(setting),
            stood=show(self.stands),
            n_rounds=self.n_rounds(setting),
            gain=ratios.median - 1 if ratios else None,
            spread=ratios.quartile_3 - ratios.quartile_1 if ratios else None,
            is_taken=is_taken,
            why=why,
        )


def wins(ratios: Stat) -> bool:
    """Whether a speed-up is more than the spread of what was measured, and worth the change."""
    return ratios.median - 1 > max(MIN_GAIN, ratios.quartile_3 - ratios.quartile_1)


def turn_seconds(sample: Sample, goal: Goal = "turn") -> float:
    """The time that counts for a goal: reading, writing, or both."""
    return {"decode": sample.decode_s, "prefill": sample.prefill_s, "turn": sample.prefill_s + sample.decode_s}[goal]
