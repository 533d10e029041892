"""Stages of a turn: how time is divided among them, what limits them, and the trace of a real turn with a fake model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.bench.profile import Profile, StageTime, advise, limits_of, stage_times
from edge.bench.trace import ENGINE_THREAD, STAGES, Span, Stage, Trace
from edge.conversation.store import ConversationStore
from edge.errors import UsageError
from edge.formats.artifact import open_artifact
from edge.plan import Plan, PlanRequest, make_plan
from edge.types import Usage
from tests.unit.bench.fakes import device, write_gguf


def span(stage: Stage, start: float, end: float, thread: str = ENGINE_THREAD, **details: int) -> Span:
    return Span(stage, start, end, thread, details)


def times(spans: list[Span], start: float, end: float) -> dict[str, tuple[float, float]]:
    return {
        one.stage: (round(one.ms), round(one.hidden_ms)) for one in stage_times(spans, start, end) if one.ms or one.hidden_ms
    }


def test_a_turn_is_divided_among_its_stages() -> None:
    spans = [
        span("save", 0.0, 0.01, "main"),
        span("template", 0.02, 0.03, "turn"),
        span("tokenise", 0.03, 0.08, "turn"),
        span("prefill", 0.10, 0.50),
        span("sampling", 0.50, 0.51),
        span("decode", 0.51, 0.60),
        span("save", 0.60, 0.62, "turn"),
    ]
    assert times(spans, 0.0, 0.65) == {
        "save": (30, 0), "template": (10, 0), "tokenise": (50, 0), "queue": (20, 0), "prefill": (400, 0), "sampling": (10, 0),
        "decode": (90, 0), "other": (40, 0),
    }  # fmt: skip


def test_what_delays_nobody_is_hidden() -> None:
    spans = [
        span("decode", 0.0, 1.0),
        span("save", 0.2, 0.5, "turn"),  # beside the engine
        span("save", 0.9, 1.1, "turn"),  # partly
        span("save", 1.2, 1.5),  # after the end
    ]
    assert times(spans, 0.0, 1.2) == {"decode": (1000, 0), "save": (100, 700), "other": (100, 0)}


def test_of_nested_calls_the_innermost_counts() -> None:
    spans = [span("tokenise", 0.1, 0.4, "turn"), span("template", 0.2, 0.3, "turn"), span("decode", 0.4, 0.5)]
    assert times(spans, 0.1, 0.5) == {"tokenise": (200, 0), "template": (100, 0), "decode": (100, 0)}


def test_the_stages_of_any_turn_add_up_to_it() -> None:
    random_numbers = random.Random(3)
    for _ in range(50):
        spans = []
        for thread in (ENGINE_THREAD, "turn", "main"):
            moment = random_numbers.random()
            for _ in range(random_numbers.randrange(12)):
                end = moment + random_numbers.choice([0.0, random_numbers.random()])
                spans.append(span(random_numbers.choice(list(STAGES)), moment, end, thread))
                moment = end + random_numbers.choice([0.0, random_numbers.random()])
        found = stage_times(spans, 1.0, 4.0)
        assert sum(one.ms for one in found) == pytest.approx(3000)
        assert sum(one.share for one in found) == pytest.approx(1)
        engine = sum(max(0.0, min(one.end, 4.0) - max(one.start, 1.0)) for one in spans if one.thread == ENGINE_THREAD)
        assert sum(one.ms for one in found) >= 1000 * engine - 1e-6


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    artifact = open_artifact(write_gguf(tmp_path / "tiny.gguf"))
    return make_plan(device(), artifact, PlanRequest(backend="fake", context=1024, n_seq=1))


def test_a_phase_is_memory_bound_where_it_takes_little_longer_than_its_weights(plan: Plan) -> None:
    usage = Usage(n_prompt=2 * plan.n_ubatch, n_generated=10)
    spans = [span("prefill", 0.0, 1.0, n_tokens=2 * plan.n_ubatch)]
    spans += [span("decode", 1 + n, 1.01 + n, n_tokens=1, n_sequences=1) for n in range(10)]
    prefill, decode = limits_of(spans, plan, usage, bandwidth=1e6)
    assert (prefill.n_passes, decode.n_passes) == (2, 10)
    assert prefill.bytes_per_s == 2 * prefill.bytes_per_pass
    assert decode.bytes_per_s == pytest.approx(decode.bytes_per_pass * 10 / 0.1)
    assert decode.bytes_per_pass > plan.artifact.facts.weights_bytes * 0.9
    fits = decode.bytes_per_s / 0.9
    assert [one.bound for one in limits_of(spans, plan, usage, fits)] == ["compute", "memory"]
    assert limits_of(spans, plan, usage, fits)[1].share == pytest.approx(0.9)
    assert [one.bound for one in limits_of(spans, plan, usage, 10 * fits)] == ["compute", "compute"]


def profile(plan: Plan, bandwidth: float = 1e9, n_prompt: int = 30, **ms: float) -> Profile:
    whole = sum(ms.values())
    spans = [span("prefill", 0.0, 1.0, n_tokens=30), span("decode", 1.0, 1.1, n_tokens=1, n_sequences=1)]
    stages = tuple(
        StageTime(stage=stage, ms=ms.get(stage, 0.0), share=ms.get(stage, 0.0) / whole, hidden_ms=0.0, n_calls=1)
        for stage in STAGES
    )
    return Profile(
        model="tiny", engine="fake", accelerator="cpu", n_prompt=n_prompt, n_reused=0, n_restored=0, n_generated=1, n_drafted=0,
        n_accepted=0, first_token_ms=1, total_ms=whole, stages=stages, bandwidth_bytes_per_s=bandwidth,
        limits=limits_of(spans, plan, Usage(n_prompt=30, n_generated=1), bandwidth), held_back="",
    )  # fmt: skip


def test_the_advice_is_about_the_longest_stage(plan: Plan) -> None:
    decode_speed = profile(plan, decode=1).limits[1].bytes_per_s
    bound_by_memory = profile(plan, decode_speed, decode=80, prefill=20)
    assert advise(bound_by_memory, is_tuned=False).startswith("Decode takes 80% of the turn and is memory-bound, at 100% of")
    assert "smaller model" in advise(bound_by_memory, is_tuned=False)
    bound_by_arithmetic = profile(plan, 100 * decode_speed, decode=80, prefill=20)
    assert "compute-bound" in advise(bound_by_arithmetic, is_tuned=False)
    assert "edge tune tiny" in advise(bound_by_arithmetic, is_tuned=False)
    assert "edge tune" not in advise(bound_by_arithmetic, is_tuned=True)
    assert "edge kv warm" in advise(profile(plan, prefill=80, decode=20, n_prompt=1000), is_tuned=True)
    assert "edge kv warm" not in advise(profile(plan, prefill=80, decode=20), is_tuned=True)


def test_the_advice_is_one_sentence_for_every_stage(plan: Plan) -> None:
    for stage in STAGES:
        sentence = advise(profile(plan, **{stage: 10}), is_tuned=False)
        assert sentence.startswith(stage.capitalize() + " takes 100% of the turn")
        assert sentence.endswith(".") and ". " not in sentence


def test_what_spoils_a_measurement_comes_first(plan: Plan) -> None:
    found = profile(plan, decode=80)
    assert "3.2 processors" in advise(replace(found, busy_processors=3.2), is_tuned=False)
    assert "throttled (hot)" in advise(replace(found, held_back="hot", busy_processors=3.2), is_tuned=False)


def answer(store: ConversationStore, trace: Trace | None) -> str:
    with Assistant(FakeBackend(chunk_size=64), store=store, trace=trace) as assistant:
        reply = assistant.conversation(system="Be brief.").send("word " * 40, max_tokens=20, temperature=0)
        reply.wait()
        assert reply.usage.n_generated == 20
        assistant.flush_cache()
        return reply.text


def test_a_trace_has_every_call_of_a_turn_and_changes_nothing(tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "plain.db") as plain, ConversationStore(tmp_path / "traced.db") as traced:
        trace = Trace()
        assert answer(traced, trace) == answer(plain, None)
        assert [node.content for node in traced.path(traced.list()[0].id)] == [
            node.content for node in plain.path(plain.list()[0].id)
        ]
    by_stage = {stage: [one for one in trace.spans if one.stage == stage] for stage in STAGES}
    prompt = sum(one.details["n_tokens"] for one in by_stage["prefill"])
    assert prompt > 200
    assert len(by_stage["prefill"]) == -(-prompt // 64)
    assert [dict(one.details) for one in by_stage["decode"]] == [{"n_tokens": 1, "n_sequences": 1}] * 19
    assert len(by_stage["sampling"]) == 20
    assert len([one for one in by_stage["detokenise"] if one.thread == ENGINE_THREAD]) == 20
    assert by_stage["template"] and by_stage["tokenise"] and by_stage["save"]
    assert {one.thread for one in by_stage["template"]} == {"edge-turn"}
    assert {one.thread for one in by_stage["decode"]} == {ENGINE_THREAD}


def test_without_a_trace_nothing_stands_in_front_of_a_part() -> None:
    with ConversationStore(None) as store, Assistant(FakeBackend(), store=store) as assistant:
        assert assistant.store is store
        assert type(assistant._scheduler._backend) is FakeBackend
        assert type(assistant._prompting.template).__name__ == "ChatTemplate"


def test_a_call_that_fails_is_a_span_too() -> None:
    trace = Trace()
    with FakeBackend() as backend:
        watched = trace.watch(backend, "backend")
        with pytest.raises(UsageError):
            watched.decode([])
    assert [one.stage for one in trace.spans] == ["decode"]


def test_a_trace_file_is_in_the_format_of_perfetto() -> None:
    trace = Trace()
    spans = [
        span("prefill", 5.0, 5.5, n_tokens=12), span("sampling", 5.5, 5.5), span("save", 4.9, 5.1, "edge-turn"),
    ]  # fmt: skip
    found = json.loads(trace.to_json(spans, {"model": "tiny"}))
    names = {event["tid"]: event["args"]["name"] for event in found["traceEvents"] if event["ph"] == "M"}
    calls = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"], names[event["tid"]]) for event in calls] == [
        ("save", 0, pytest.approx(200_000), "edge-turn"),
        ("prefill", pytest.approx(100_000), pytest.approx(500_000), ENGINE_THREAD),
        ("sampling", pytest.approx(600_000), 0, ENGINE_THREAD),
    ]
    assert calls[1]["args"] == {"n_tokens": 12}
    assert {event["pid"] for event in found["traceEvents"]} == {calls[0]["pid"]}
    assert found["otherData"] == {"model": "tiny"}
