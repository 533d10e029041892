"""The search for better settings: one knob after the other, each by successive halving.

The incumbent takes part in every round, so each round gives ratios that other load on the machine affects little. After each
heat half of the challengers leave, and the number of rounds doubles. The last challenger replaces the incumbent only if it wins
by more than the spread of its ratios, or clearly in each of them. Nothing here depends on engines or on real time.

Source: successive halving as in Jamieson and Talwalkar, 2016; coordinate descent.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edge.bench.values import Sample, Setting, Stat, stat
from edge.errors import EdgeError
from edge.plan.speed import turn_seconds

__all__ = ["MIN_GAIN", "Knob", "Outcome", "Search", "Trial", "goal_seconds", "wins"]

MIN_GAIN = 0.01
"""A smaller one is not worth another setting, however certain it is."""
_CLEAR = 0.05  # a gain in every round that is none of chance
_FINAL_ROUNDS = 5
_ENOUGH_ROUNDS = 3  # to decide where time is short
_LOST_AFTER = 3  # rounds in the final without a single win

Goal = Literal["decode", "prefill", "turn", "chat"]
"""The time that a knob is meant to shorten; "chat" is an average turn of one, its share of loading the model included."""


@dataclass(frozen=True)
class Knob:
    """One thing that can be set.

    Attributes:
        name: for people: "threads".
        goal: the time that it is meant to shorten.
        challengers: returns the settings that differ from a given one in this knob only.
        show: returns a setting's value of it as text.
        least_gain: a smaller one is not worth the change, however certain it is.
        refusal: returns why a setting is measured and not taken, whatever it gains; "" where it may be.
    """

    name: str
    goal: Goal
    challengers: Callable[[Setting], list[Setting]]
    show: Callable[[Setting], str]
    least_gain: float = MIN_GAIN
    refusal: Callable[[Setting], str] = lambda setting: ""


class Trial(msgspec.Struct, frozen=True):
    """The result of one challenger.

    Attributes:
        knob: its name.
        value: the challenger's value.
        incumbent: the incumbent's value; "stood" in JSON.
        n_rounds: number of measurements.
        gain: median speed over that of the incumbent, less 1; None if not measured.
        spread: interquartile range of that ratio.
        is_taken: it replaced the incumbent.
        why: in words.
    """

    knob: str
    value: str
    incumbent: str = msgspec.field(name="stood")
    n_rounds: int
    gain: float | None
    spread: float | None
    is_taken: bool
    why: str


@dataclass(frozen=True)
class Outcome:
    """The result of a search.

    Attributes:
        best: the last incumbent; the first one if no challenger was better.
        trials: all challengers, in order.
        is_complete: every knob was tried before time ran out.
    """

    best: Setting
    trials: tuple[Trial, ...]
    is_complete: bool


class _OutOfTimeError(Exception):
    pass


@dataclass
class Search:
    """One search; see the module.

    Args:
        measure: measures a setting once. An EdgeError means that the setting is unavailable.
        has_time: asked before every measurement.
        on_progress: called with the current trial.
    """

    measure: Callable[[Setting], Sample]
    has_time: Callable[[], bool]
    on_progress: Callable[[str], None] = lambda text: None
    _trials: list[Trial] = field(default_factory=list)

    def run(self, start: Setting, knobs: Sequence[Knob]) -> Outcome:
        """Try one knob after the other, from a setting that works.

        Raises:
            EdgeError: the incumbent could not be measured.
        """
        best = start
        try:
            for knob in knobs:
                best = self._turn(knob, best)
        except _OutOfTimeError:
            return Outcome(best, tuple(self._trials), is_complete=False)
        return Outcome(best, tuple(self._trials), is_complete=True)

    def _turn(self, knob: Knob, incumbent: Setting) -> Setting:
        """Try one knob, and return the incumbent afterwards."""
        contest = _Contest(knob, incumbent, knob.challengers(incumbent), self._trials)
        n_rounds = 1
        while len(contest.left) > 1:
            self._heat(contest, n_rounds)
            contest.halve()
            n_rounds *= 2
        try:
            while contest.left and contest.n_rounds(contest.left[0]) < _FINAL_ROUNDS and not contest.is_lost(contest.left[0]):
                self._heat(contest, 1)
        except _OutOfTimeError:
            if contest.n_rounds(contest.left[0]) < _ENOUGH_ROUNDS:
                raise
        return contest.decide()

    def _heat(self, contest: _Contest, n_rounds: int) -> None:
        for _ in range(n_rounds):
            order = [contest.incumbent, *contest.left]
            for setting in order if contest.round % 2 == 0 else reversed(order):
                if not self.has_time():
                    raise _OutOfTimeError
                self.on_progress(f"{contest.knob.name}: {contest.knob.show(setting)}")
                try:
                    sample = self.measure(setting)
                except EdgeError as error:
                    if not self.has_time():  # that is why it ended
                        raise _OutOfTimeError from error
                    if setting == contest.incumbent:
                        raise
                    contest.drop(setting, error)
                else:
                    contest.times[setting][contest.round] = goal_seconds(sample, contest.knob.goal)
            contest.round += 1


class _Contest:
    def __init__(self, knob: Knob, incumbent: Setting, challengers: Sequence[Setting], trials: list[Trial]) -> None:
        self.knob, self.incumbent, self._trials = knob, incumbent, trials
        self.left = [setting for setting in dict.fromkeys(challengers) if setting != incumbent]
        self.times: dict[Setting, dict[int, float]] = {setting: {} for setting in [incumbent, *self.left]}
        self.round = 0

    def n_rounds(self, setting: Setting) -> int:
        return len(self.times[setting])

    def ratios(self, setting: Setting) -> Stat | None:
        mine, theirs = self.times[setting], self.times[self.incumbent]
        shared = [n for n in mine if n in theirs]
        return stat([theirs[n] / mine[n] for n in shared]) if shared else None

    def is_lost(self, setting: Setting) -> bool:
        """Return True if it has not won a single round by now."""
        ratios = self.ratios(setting)
        return ratios is not None and self.n_rounds(setting) >= _LOST_AFTER and ratios.max <= 1 + self.knob.least_gain

    def halve(self) -> None:
        self.left.sort(key=lambda setting: statistics.median(self.times[setting].values()))
        n_kept = -(-len(self.left) // 2)
        for setting in self.left[n_kept:]:
            self._note(setting, is_taken=False, why="others were faster")
        self.left = self.left[:n_kept]

    def drop(self, setting: Setting, error: EdgeError) -> None:
        self.left.remove(setting)
        self._note(setting, is_taken=False, why=error.message)

    def decide(self) -> Setting:
        if not self.left:
            return self.incumbent
        last = self.left[0]
        ratios = self.ratios(last)
        is_faster = ratios is not None and wins(ratios, self.knob.least_gain)
        refusal = self.knob.refusal(last) if is_faster else ""
        is_taken = is_faster and not refusal
        why = refusal or f"{'' if is_faster else 'not '}faster by more than the spread"
        if self.knob.least_gain > MIN_GAIN and not is_faster:
            why = f"not faster by {self.knob.least_gain:.0%} and more than the spread"
        self._note(last, is_taken=is_taken, why=why)
        return last if is_taken else self.incumbent

    def _note(self, setting: Setting, *, is_taken: bool, why: str) -> None:
        ratios, show = self.ratios(setting), self.knob.show
        trial = Trial(
            knob=self.knob.name,
            value=show(setting),
            incumbent=show(self.incumbent),
            n_rounds=self.n_rounds(setting),
            gain=ratios.median - 1 if ratios else None,
            spread=ratios.quartile_3 - ratios.quartile_1 if ratios else None,
            is_taken=is_taken,
            why=why,
        )
        self._trials.append(trial)


def wins(ratios: Stat, least_gain: float = MIN_GAIN) -> bool:
    """Return True if a speed-up exceeds the least gain, and the spread of its measurements.

    One that exceeds it in every round is none of chance either: a busy machine spreads large gains by more than they are.
    """
    return ratios.median - 1 > max(least_gain, ratios.quartile_3 - ratios.quartile_1) or ratios.min - 1 > max(
        least_gain, _CLEAR
    )


def goal_seconds(sample: Sample, goal: Goal) -> float:
    """Return the time that counts for a goal: prefill, decode, both, or an average turn of a chat."""
    if goal == "chat":
        return turn_seconds(sample.prefill_tokens_per_s, sample.decode_tokens_per_s, sample.load_s)
    return {"decode": sample.decode_s, "prefill": sample.prefill_s, "turn": sample.prefill_s + sample.decode_s}[goal]
