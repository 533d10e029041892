"""Where the time of a turn goes: its stages, how near prefill and decode come to the memory bandwidth, and what to change.

A stage has the wall-clock time in which the turn waited for it, so the stages add up to the whole. What other threads do while
the engine computes, and what is done after the end, delays nobody and is counted apart.

Source: the roofline model (Williams et al., 2009), with the memory bandwidth as the roof: a pass that takes at most twice the
time that reading its weights takes is memory-bound, a slower one compute-bound.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.bench.bandwidth import decode_bytes
from edge.bench.process import setting_of
from edge.bench.trace import ENGINE_THREAD, STAGES, Span, Stage
from edge.units import quoted

if TYPE_CHECKING:
    from edge.plan.receipt import Plan
    from edge.types import Usage

__all__ = ["MEMORY_BOUND_SHARE", "Limit", "Profile", "StageTime", "advise", "limits_of", "stage_times"]

MEMORY_BOUND_SHARE = 0.5
_LONG_PROMPT = 256  # tokens; a shorter one is not worth storing beforehand


class StageTime(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a turn.

    Attributes:
        stage: its name.
        ms: wall-clock time in which the turn waited for it, in milliseconds.
        share: of the whole turn.
        hidden_ms: time that it took besides, without delaying the turn.
        n_calls: calls that were timed.
    """

    stage: Stage
    ms: float
    share: float
    hidden_ms: float
    n_calls: int


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How near one phase comes to the memory bandwidth.

    Attributes:
        phase: which.
        tokens_per_s: its speed.
        n_passes: through the model.
        bytes_per_pass: weights, and keys and values that a pass reads.
        bytes_per_s: read in all.
        share: of the measured bandwidth.
        bound: what limits it.
    """

    phase: Literal["prefill", "decode"]
    tokens_per_s: float
    n_passes: int
    bytes_per_pass: int
    bytes_per_s: float
    share: float
    bound: Literal["memory", "compute"]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn took.

    Attributes:
        model, engine, accelerator: what computed.
        n_prompt, n_reused, n_restored, n_generated, n_drafted, n_accepted: tokens, as in `edge.Usage`.
        first_token_ms, total_ms: from sending the message to the first text and to the end, in milliseconds.
        stages: in order; their times add up to total_ms.
        bandwidth_bytes_per_s: measured memory bandwidth; None where it does not count or was not measured.
        limits: of prefill and decode; none without a bandwidth.
        held_back: how the engine was throttled; "" if it was not.
        busy_processors: processors that other programs used just after the turn; 0 if too few to disturb it.
        advice: what to change, in one sentence.
    """

    model: str
    engine: str
    accelerator: str
    n_prompt: int
    n_reused: int
    n_restored: int
    n_generated: int
    n_drafted: int
    n_accepted: int
    first_token_ms: float
    total_ms: float
    stages: tuple[StageTime, ...]
    bandwidth_bytes_per_s: float | None
    limits: tuple[Limit, ...]
    held_back: str
    busy_processors: float = 0.0
    advice: str = ""


def stage_times(spans: Sequence[Span], start: float, end: float) -> tuple[StageTime, ...]:
    """Divide the time of a turn among its stages, in the order of STAGES.

    At every moment the turn waits for what the engine thread does, else for what another thread does; of nested calls the
    innermost counts. What is left is the queue until the engine first works, and other work after that.

    Args:
        spans: of the turn, from all threads.
        start, end: of the turn, in seconds.
    """
    waited, busy = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
    asked = max((span.end for span in spans if span.stage in ("template", "tokenise")), default=start)
    taken = min((span.start for span in spans if span.thread == ENGINE_THREAD), default=asked)
    marks = sorted({(time, index) for index, span in enumerate(spans) for time in (span.start, span.end)})
    edges = sorted({start, end, asked, taken, *(time for time, _ in marks)})
    active: dict[int, Span] = {}
    for begin, stop in itertools.pairwise(edges):
        while marks and marks[0][0] <= begin:
            index = marks.pop(0)[1]
            if active.pop(index, None) is None and spans[index].end > begin:
                active[index] = spans[index]
        innermost = {span.thread: span for span in sorted(active.values(), key=lambda one: one.start)}
        for stage in {span.stage for span in innermost.values()}:
            busy[stage] += stop - begin
        if begin < start or stop > end:
            continue
        span = innermost.get(ENGINE_THREAD) or max(innermost.values(), key=lambda one: one.start, default=None)
        idle: Stage = "queue" if asked <= begin < taken else "other"
        waited[span.stage if span is not None else idle] += stop - begin
    calls, whole = Counter(span.stage for span in spans), end - start
    return tuple(
        StageTime(
            stage=stage,
            ms=1000 * waited[stage],
            share=waited[stage] / whole if whole else 0.0,
            hidden_ms=1000 * max(0.0, busy[stage] - waited[stage]),
            n_calls=calls[stage],
        )
        for stage in STAGES
    )


def limits_of(spans: Sequence[Span], plan: Plan, usage: Usage, bandwidth: float) -> tuple[Limit, ...]:
    """Compare prefill and decode with the memory bandwidth.

    Args:
        spans: of the turn.
        plan: how the model was loaded.
        usage: tokens of the turn.
        bandwidth: measured, in bytes per second.
    """
    setting, limits = setting_of(plan), []
    prefills = [span for span in spans if span.stage == "prefill"]
    decodes = [span for span in spans if span.stage == "decode"]
    n_passes = sum(math.ceil(span.details["n_tokens"] / plan.n_ubatch) for span in prefills)
    n_past = usage.n_prompt + usage.n_generated / 2
    phases: tuple[tuple[Literal["prefill", "decode"], list[Span], int, int, float], ...] = (
        ("prefill", prefills, n_passes, sum(span.details["n_tokens"] for span in prefills), usage.n_prompt / 2),
        ("decode", decodes, len(decodes), usage.n_generated, n_past),
    )
    for phase, found, n_phase_passes, n_tokens, n_window in phases:
        seconds = sum(span.end - span.start for span in found)
        n_bytes = decode_bytes(plan.artifact, setting, n_window)
        if not seconds or not n_bytes:
            continue
        bytes_per_s = n_bytes * n_phase_passes / seconds
        share = bytes_per_s / bandwidth
        limits.append(
            Limit(
                phase=phase,
                tokens_per_s=n_tokens / seconds,
                n_passes=n_phase_passes,
                bytes_per_pass=n_bytes,
                bytes_per_s=bytes_per_s,
                share=share,
                bound="memory" if share >= MEMORY_BOUND_SHARE else "compute",
            )
        )
    return tuple(limits)


def advise(profile: Profile, *, is_tuned: bool) -> str:
    """Return what to change about the stage that takes the most time, in one sentence.

    Args:
        profile: without advice.
        is_tuned: the settings were measured by `edge tune`.
    """
    if profile.held_back:
        return f"The engine was throttled ({profile.held_back}): let the device cool, charge it or close other programs."
    if profile.busy_processors:
        return f"Other programs kept {profile.busy_processors:.1f} processors busy: close them, and profile again."
    most = max(profile.stages, key=lambda one: one.ms)
    return f"{most.stage.capitalize()} takes {most.share:.0%} of the turn{_ADVICE[most.stage](profile, is_tuned)}"


def _of_prefill(profile: Profile, is_tuned: bool) -> str:
    if profile.n_prompt >= _LONG_PROMPT and profile.n_reused < profile.n_prompt / 2:
        return ": prefill what your prompts have in common beforehand (edge kv warm), so that it is restored instead."
    return _of_passes("prefill", profile, is_tuned)


def _of_decode(profile: Profile, is_tuned: bool) -> str:
    return _of_passes("decode", profile, is_tuned)


def _of_passes(phase: str, profile: Profile, is_tuned: bool) -> str:
    limit = next((one for one in profile.limits if one.phase == phase), None)
    tune = f": edge tune {quoted(profile.model)} looks for a faster engine, batch and number of threads."
    if limit is None:
        return tune if not is_tuned else ": a smaller model is faster (edge models ls)."
    if limit.bound == "memory":
        return (
            f" and is memory-bound, at {limit.share:.0%} of what this memory can deliver: only fewer bytes help, so use a "
            "smaller model or fewer bits a weight (edge models ls)."
        )
    why = f" and is compute-bound, at {limit.share:.0%} of the memory bandwidth"
    return why + (tune if not is_tuned else ": use a layout with faster kernels (edge convert --for this-device).")


def _always(text: str) -> Callable[[Profile, bool], str]:
    return lambda profile, is_tuned: text


_ADVICE: dict[Stage, Callable[[Profile, bool], str]] = {
    "template": _always(": the model's chat template is slow; a shorter conversation renders faster."),
    "tokenise": _always(": send long texts once, as an attachment of a conversation, since only new text is tokenised."),
    "queue": _always(": another reply used the engine; raise engine.parallel, or wait for it."),
    "restore": _always(": put the KV cache on a faster disk (paths.cache_dir), or store less of it (--kv-type q8_0 or u8)."),
    "prefill": _of_prefill,
    "draft": _always(": the draft model is too large for what it guesses right; use a smaller one, or none."),
    "decode": _of_decode,
    "sampling": _always(": --top-k 40 leaves fewer tokens to choose from."),
    "detokenise": _always(": please report this, since it should take next to no time."),
    "save": _always(": the disk is slow; put conversations on a faster one (paths.data_dir)."),
    "other": _always(": other programs keep the processor busy; close them, or try again."),
}
