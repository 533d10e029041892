"""The governor on traces of machines, and properties that hold for any readings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.config.schema import GovernorSettings
from edge.device.sensors import Readings
from edge.engine.governor import Governor, Limits, Workload
from tests.sensor_traces import replay

GIB = 2**30
WORK = Workload(n_threads=4, n_threads_batch=6, n_ctx=8192, kv_bytes=GIB // 4)
WELL = Readings(
    total_bytes=8 * GIB, available_bytes=4 * GIB, stall_percent=0.0, n_oom_kills=0, hottest_c=50.0, headroom_c=49.0,
    battery_percent=80, is_on_battery=True,
)  # fmt: skip
HOT = dataclasses.replace(WELL, hottest_c=97.0, headroom_c=2.0)
HOLD_S = GovernorSettings().hold_s


def course(name: str, work: Workload = WORK, **settings: Any) -> list[tuple[float, str]]:
    """Return the times at which the note changes in a trace, whose last readings go on for ten minutes."""
    governor = Governor(work, GovernorSettings(**settings))
    seen: list[tuple[float, str]] = []
    steps = list(replay(name))
    t_end_s, last = steps[-1]
    steps += [(t_end_s + 2 * n, last) for n in range(1, 300)]
    for t_s, readings in steps:
        note = governor.step(readings, t_s).note
        if note != (seen[-1][1] if seen else ""):
            seen.append((t_s, note))
    return seen


def test_a_jetson_that_heats_up_is_throttled_before_its_kernel_does_and_comes_back() -> None:
    throttles_s = next(
        t_s for t_s, readings in replay("jetson") if readings.headroom_c is not None and readings.headroom_c <= 0
    )
    seen = course("jetson")
    assert [note for _, note in seen] == [
        *(f"hot: {n} of 4 threads" for n in (3, 2, 1, 2, 3)),
        "",
    ]
    assert seen[0][0] < throttles_s
    assert seen[3][0] > 420, "not before the load was taken away"


def test_a_jetson_whose_gpu_computes_rests() -> None:
    notes = [note for _, note in course("jetson", dataclasses.replace(WORK, is_on_cpu=False))]
    assert notes == [*(f"hot: rests {n} % of the time" for n in (25, 50, 75, 50, 25)), ""]


def test_a_laptop_runs_down_and_is_plugged_in() -> None:
    percents = {t_s: readings.battery_percent for t_s, readings in replay("laptop")}
    seen = course("laptop")
    assert [(percents.get(t_s), note) for t_s, note in seen[:2]] == [
        (20, "low battery: 2 of 4 threads"),
        (10, "low battery: 1 of 4 threads"),
    ]
    assert seen[-1][1] == ""
    on_battery = [t_s for t_s, readings in replay("laptop") if readings.is_on_battery]
    assert all(t_s > on_battery[-1] for t_s, _ in seen[2:])


def test_a_mac_under_thermal_pressure() -> None:
    seen = course("mac")
    assert seen[:2] == [(28, "hot: 3 of 4 threads"), (44, "hot: 2 of 4 threads")], "the second step waits for the hold time"
    assert (90, "hot: 2 of 4 threads; short of memory: window 4,096") in seen
    assert seen[-1][1] == ""


def test_a_container_that_nears_its_limit() -> None:
    steps = list(replay("container"))
    seen = course("container", dataclasses.replace(WORK, kv_bytes=50 << 20))
    assert [note for _, note in seen] == [f"short of memory: window {window}" for window in ("4,096", "2,048", "4,096")] + [""]
    free = {t_s: readings.available_bytes / readings.total_bytes for t_s, readings in steps}  # type: ignore[operator]
    assert free[seen[0][0]] <= 0.05 < max(value for t_s, value in free.items() if t_s < seen[0][0])
    assert not any(readings.n_oom_kills for _, readings in steps)


def test_pressure_alone_counts_too() -> None:
    """With the limit of memory off, the stalls of the same recording are enough."""
    seen = course("container", memory_percent=0)
    stalls = {t_s: readings.stall_percent for t_s, readings in replay("container")}
    assert stalls[seen[0][0]] >= 10  # type: ignore[operator]
    assert seen[-1][1] == ""


def test_others_that_wait_for_memory_are_no_reason_where_there_is_plenty() -> None:
    """Seen on a busy machine with 14 of 24 GB available."""
    stalled = dataclasses.replace(WELL, stall_percent=13.0)
    assert Governor(WORK).step(stalled, 0).note == ""
    scarce = dataclasses.replace(stalled, available_bytes=8 * GIB // 5)
    assert Governor(WORK).step(scarce, 0).why == "1.7 GB of 8.6 GB available, programs waited for memory 13 % of the time"
    unknown = Readings(stall_percent=13.0)
    assert Governor(WORK).step(unknown, 0).why == "programs waited for memory 13 % of the time"


@pytest.mark.parametrize("name", ["jetson", "laptop", "container"])
def test_thresholds_can_be_turned_off(name: str) -> None:
    assert course(name, hot_c=150, battery_percent=0, memory_percent=0, stall_percent=0) == []


def step_through(governor: Governor, readings: Readings, from_s: float, to_s: float) -> list[tuple[float, Limits]]:
    """Every second; the times at which the limits changed."""
    before, changes = governor.limits, []
    for n in range(int(to_s - from_s) + 1):
        limits = governor.step(readings, from_s + n)
        if limits is not before:
            changes.append((from_s + n, limits))
            before = limits
    return changes


def test_what_nothing_changes_gives_the_same_object() -> None:
    governor = Governor(WORK)
    first = governor.limits
    assert governor.step(WELL, 0.0) is first
    assert (first.n_threads, first.n_threads_batch, first.rest, first.n_ctx, first.single_reply) == (4, 6, 0.0, 8192, False)
    assert (first.note, first.why) == ("", "")


def test_a_reading_between_hot_and_cool_changes_nothing() -> None:
    between = dataclasses.replace(WELL, headroom_c=6.0)
    governor = Governor(WORK)
    assert step_through(governor, between, 0, 100) == []
    step_through(governor, HOT, 101, 101)
    held = governor.limits
    assert step_through(governor, between, 102, 500) == []
    assert held.n_threads == 3


def test_the_temperature_of_the_settings_counts_instead() -> None:
    governor = Governor(WORK, GovernorSettings(hot_c=60))
    assert governor.step(dataclasses.replace(WELL, hottest_c=59.0, headroom_c=None), 0).note == ""
    limits = governor.step(dataclasses.replace(WELL, hottest_c=60.0, headroom_c=39.0), 1)
    assert (limits.note, limits.why) == ("hot: 3 of 4 threads", "60 °C")


def test_a_single_thread_rests_instead() -> None:
    governor = Governor(dataclasses.replace(WORK, n_threads=1, n_threads_batch=1))
    assert [limits.rest for _, limits in step_through(governor, HOT, 0, 100)] == [0.25, 0.5, 0.75]
    assert governor.limits.n_threads == governor.limits.n_threads_batch == 1


def test_where_threads_matter_to_the_last_bit_they_stay() -> None:
    governor = Governor(dataclasses.replace(WORK, keeps_threads=True))
    changes = step_through(governor, HOT, 0, 100)
    assert {(limits.n_threads, limits.n_threads_batch) for _, limits in changes} == {(4, 6)}
    assert changes[-1][1].note == "hot: rests 75 % of the time"


def test_without_a_cache_that_can_be_resized_one_reply_at_a_time_is_left() -> None:
    governor = Governor(dataclasses.replace(WORK, can_resize=False))
    limits = governor.step(dataclasses.replace(WELL, available_bytes=GIB // 8), 0)
    assert (limits.n_ctx, limits.single_reply, limits.note) == (8192, True, "short of memory: one reply at a time")


def test_a_killed_process_is_a_warning_of_the_last_kind() -> None:
    governor = Governor(WORK)
    governor.step(dataclasses.replace(WELL, n_oom_kills=3), 0)
    assert governor.limits.note == "", "what happened before counts for nothing"
    assert governor.step(dataclasses.replace(WELL, n_oom_kills=4), 1).n_ctx == 2048


def test_a_window_comes_back_only_where_there_is_room_for_it() -> None:
    border = 8 * GIB // 20
    governor = Governor(WORK)
    governor.step(dataclasses.replace(WELL, available_bytes=border), 0)
    assert governor.limits.n_ctx == 4096
    growth = WORK.kv_bytes // 2
    assert step_through(governor, dataclasses.replace(WELL, available_bytes=2 * border + growth), 1, 200) == []
    changes = step_through(governor, dataclasses.replace(WELL, available_bytes=2 * border + growth + (1 << 20)), 201, 400)
    assert [(t_s, limits.n_ctx) for t_s, limits in changes] == [(201 + HOLD_S, 8192)]


def test_what_is_wrong_is_named_also_when_the_cause_changes() -> None:
    low = dataclasses.replace(WELL, battery_percent=15)
    governor = Governor(WORK)
    step_through(governor, HOT, 0, 20)
    assert governor.limits.note == "hot: 2 of 4 threads"
    step_through(governor, low, 21, 100)
    assert (governor.limits.note, governor.limits.why) == ("low battery: 2 of 4 threads", "battery at 15 %")


# For any readings at all

numbers = st.floats(allow_nan=True, allow_infinity=True)
memory_sizes = st.one_of(st.none(), st.integers(-1, 2**45))
any_readings = st.builds(
    Readings,
    total_bytes=memory_sizes,
    available_bytes=memory_sizes,
    stall_percent=st.one_of(st.none(), numbers),
    n_oom_kills=st.one_of(st.none(), st.integers(-5, 5)),
    memory_level=st.one_of(st.none(), st.integers(-1, 9)),
    hottest_c=st.one_of(st.none(), numbers),
    headroom_c=st.one_of(st.none(), numbers, st.floats(-10, 20)),
    is_throttled=st.booleans(),
    heat_level=st.one_of(st.none(), st.integers(-1, 9)),
    battery_percent=st.one_of(st.none(), st.integers(-5, 200)),
    is_on_battery=st.booleans(),
)
works = st.builds(
    Workload,
    n_threads=st.integers(1, 256),
    n_threads_batch=st.integers(1, 256),
    n_ctx=st.integers(1, 1 << 20),
    kv_bytes=st.integers(0, 1 << 34),
    is_on_cpu=st.booleans(),
    keeps_threads=st.booleans(),
    can_resize=st.booleans(),
)
histories = st.lists(st.tuples(st.floats(0, 40), any_readings), max_size=60)


@given(works, histories)
def test_limits_are_always_possible(work: Workload, history: list[tuple[float, Readings]]) -> None:
    governor, now_s = Governor(work), 0.0
    for pause_s, readings in history:
        now_s += pause_s
        limits = governor.step(readings, now_s)
        assert 1 <= limits.n_threads <= work.n_threads
        assert 1 <= limits.n_threads_batch <= work.n_threads_batch
        assert 0 <= limits.rest <= 0.75
        assert min(512, work.n_ctx) <= limits.n_ctx <= work.n_ctx
        full = (work.n_threads, work.n_threads_batch, 0.0, work.n_ctx, False)
        is_full = (limits.n_threads, limits.n_threads_batch, limits.rest, limits.n_ctx, limits.single_reply) == full
        assert bool(limits.note) != is_full, "throttling is said, and nothing else is"


@given(histories)
def test_nothing_flaps_faster_than_the_hold_time(history: list[tuple[float, Readings]]) -> None:
    governor, now_s = Governor(WORK), 0.0
    paced_s = sized_s = -math.inf
    before = governor.limits
    for pause_s, readings in history:
        now_s += pause_s
        limits = governor.step(readings, now_s)
        if (limits.n_threads, limits.rest) != (before.n_threads, before.rest):
            assert now_s - paced_s >= HOLD_S
            paced_s = now_s
        if (limits.n_ctx, limits.single_reply) != (before.n_ctx, before.single_reply):
            assert now_s - sized_s >= HOLD_S
            sized_s = now_s
        before = limits


@given(works, histories)
def test_all_comes_back_when_all_is_well(work: Workload, history: list[tuple[float, Readings]]) -> None:
    governor, now_s = Governor(work), 0.0
    full = governor.limits
    for pause_s, readings in history:
        now_s += pause_s
        governor.step(readings, now_s)
    well = dataclasses.replace(WELL, total_bytes=1 << 40, available_bytes=1 << 39)
    for n in range(int(5 * HOLD_S)):
        governor.step(well, now_s + n)
    assert governor.limits == full


@given(histories)
def test_a_sensor_that_goes_away_does_not_throttle_for_ever(history: list[tuple[float, Readings]]) -> None:
    governor, now_s = Governor(WORK), 0.0
    for pause_s, readings in history:
        now_s += pause_s
        governor.step(readings, now_s)
    for n in range(int(5 * HOLD_S)):
        governor.step(Readings(), now_s + n)
    assert governor.limits.note == ""
