"""The ladder: what a rung does, really run with a fake backend in processes of its own; and which rungs are taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edge.bench import ladder as ladder_module
from edge.bench.ladder import LOSSLESS_KL, _Climb, _compare, _steady_s, run_ladder, unpacked
from edge.bench.ladder_plot import plot_ladder
from edge.bench.ladder_profile import settings_of
from edge.bench.ladder_steps import STEPS, Models, Step, Variant, naive_setup
from edge.bench.ladder_values import Ladder, Rung, Setup, Turn, Work, best_of, latency_of
from edge.bench.ladder_work import QUESTIONS, WORKS, choose_work, document, items, manual, session_of
from edge.device import probe
from edge.errors import BackendError
from edge.formats.artifact import open_artifact
from tests.unit.bench.fakes import write_gguf

ENTRY = "edge_cli.ladder_child:main"
TINY = Work(name="tiny", n_turns=3, n_sessions=2, n_words=20, n_reply=4, n_questions=1, n_items=2, n_logits=20)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    artifact = open_artifact(write_gguf(tmp_path / "tiny.gguf", n_ctx=8192))
    return Models(probe(), artifact, engines=("fake",))


@pytest.fixture
def climb(models: Models, tmp_path: Path) -> _Climb:
    made = _Climb(models, 1e9, ENTRY, tmp_path, lambda *_: None, lambda _: None, time.monotonic)
    made.work, made.started = TINY, time.monotonic()
    return made


def measure(climb: _Climb, setup: Setup) -> Rung:
    rung = climb._measure("one", "lossless", Variant("one", setup))
    climb.rungs.append(rung)
    return rung


def test_every_rung_is_really_run(climb: _Climb) -> None:
    naive = naive_setup(climb.models)
    first = measure(climb, naive)
    assert (naive.threads, naive.flash_attention) == (1, False)
    assert [turn.n_reused for turn in (*first.chat_turns, *first.document_turns)] == [0, 0, 0, 0]
    assert all(0 < turn.first_ms <= turn.total_ms for turn in first.chat_turns)
    assert [turn.n_prompt for turn in first.chat_turns] == sorted({turn.n_prompt for turn in first.chat_turns})
    assert (first.kl, first.top1, first.n_same_scores) == (0, 1, 2)

    # Messages 1 and 2 are sent in the first run of the program, message 3 in the second one.
    memory = measure(climb, replace(naive, reuses=True))
    assert [bool(turn.n_reused) for turn in memory.chat_turns] == [False, True, False]
    disk = measure(climb, replace(naive, reuses=True, disk=True))
    assert [bool(turn.n_restored) for turn in disk.chat_turns] == [False, False, True]
    ahead = measure(climb, replace(naive, reuses=True, disk=True, read_ahead=True))
    assert all(turn.ahead_ms > 0 and turn.n_reused > 0.8 * turn.n_prompt for turn in ahead.chat_turns)
    assert ahead.chat_turns[1].n_prompt == first.chat_turns[1].n_prompt

    for rung in (memory, disk, ahead):
        assert rung.chat is not None
        assert rung.chat.n_same == 3
        assert all(turn.n_generated == TINY.n_reply for turn in rung.chat_turns)
        assert rung.scores == first.scores
        assert rung.ready_s is not None
        assert rung.ready_s > 0


def test_one_short_reply_says_how_large_the_workloads_may_be(climb: _Climb) -> None:
    naive = naive_setup(climb.models)
    assert climb._probe(naive) is WORKS[0]
    climb.budget_s = 0.0
    assert climb._probe(naive) is WORKS[-1]


def test_a_setup_that_does_not_arrive_is_an_error(climb: _Climb) -> None:
    naive = naive_setup(climb.models)
    n_too_many = probe().cpu.n_logical + 1  # so that the plan does not use them
    with pytest.raises(BackendError, match=f"threads is .* after loading, and {n_too_many} was to be measured"):
        measure(climb, replace(naive, threads=n_too_many))


def turn(total_ms: float = 100.0, first_ms: float = 40.0, n_prompt: int = 50, n_reused: int = 0, text: str = "a") -> Turn:
    return Turn(
        first_ms=first_ms, total_ms=total_ms, n_prompt=n_prompt, n_reused=n_reused, n_restored=0, n_generated=10, n_drafted=0,
        n_accepted=0, ahead_ms=0.0, text=text,
    )  # fmt: skip


def rung(name: str, turns: list[Turn], kl: float, **values: Any) -> Rung:
    return Rung(name=name, title=name, chat=latency_of(turns, turns), chat_turns=tuple(turns), kl=kl, **values)


def climbed(
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of: Callable[[Setup], tuple[list[Turn], float]],
    **options: Any,
) -> Ladder:
    """Climb with turns and KL that follow from the setup by a formula."""

    def stand_in(self: _Climb, name: str, kind: Any, variant: Variant) -> Rung:
        turns, kl = of(variant.setup)
        return rung(name, turns, kl, kind=kind, setup=variant.setup)

    monkeypatch.setattr(_Climb, "_measure", stand_in)
    return run_ladder(models, budget_s=100, entry=ENTRY, folder=tmp_path, work=TINY, **options)


def test_a_step_is_taken_if_it_is_faster(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(setup: Setup) -> tuple[list[Turn], float]:
        total = 1000.0 / (1 + setup.reuses) / (1 + setup.disk) * (1.5 if setup.speculates else 1)
        return [turn(total)], 0.0

    done = climbed(models, tmp_path, monkeypatch, of)
    taken = [one.name for one in done.rungs if one.is_taken]
    assert taken == ["naive", "prefix", "disk", "read-ahead"]  # read-ahead is no worse, and guesses are
    why = {one.name: one.why for one in done.rungs if not one.is_taken}
    assert why["speculation"] == "no faster than the rung below"
    assert "--draft" in why["draft"]
    assert "--student" in why["layers"]
    assert done.is_complete
    assert settings_of(done, with_loss=False) == {
        "backend": "fake", "kv.enabled": True, "chat.read_ahead": True, "engine.speculate": False, "threads": 1,
        "kv_type_k": None, "kv_type_v": None, "engine.prefill_with": None, "engine.draft": None,
    }  # fmt: skip
    best = best_of(done, ("start", "lossless"))
    assert best is not None
    assert best.chat is not None
    assert best.chat.total_s == 0.25
    assert msgspec.json.decode(msgspec.json.encode(done), type=Ladder) == done


def test_a_lossless_step_must_lose_nothing(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = climbed(
        models, tmp_path, monkeypatch, lambda setup: ([turn(1000 - 500 * setup.reuses)], 2 * LOSSLESS_KL * setup.reuses)
    )
    prefix = next(one for one in done.rungs if one.name == "prefix")
    assert not prefix.is_taken
    assert "not lossless here: KL 0.0020" in prefix.why


def test_an_engine_that_only_prefills_faster_is_not_taken(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prefixes reused, which comes later, it would be the slower one."""

    def other(models: Models, below: Setup) -> list[Variant]:
        return [Variant("other", replace(below, n_ubatch=64))]

    def of(setup: Setup) -> tuple[list[Turn], float]:
        first, rest = (100.0, 300.0) if setup.n_ubatch == 64 else (1000.0, 100.0)
        return [turn(first + rest, first, 500), turn(first + rest, first, 530)], 0.0

    monkeypatch.setattr(ladder_module, "STEPS", (Step("engine", "lossless", other, is_about_speed=True),))
    done = climbed(models, tmp_path, monkeypatch, of)
    assert [one.is_taken for one in done.rungs] == [True, False]
    assert "its decoding takes longer" in done.rungs[1].why
    # 20 new tokens a turn, at 1,000 ms for 515 of them, and 100 ms of decoding.
    assert _steady_s(done.rungs[0]) == pytest.approx((20 * 1000 / 515 + 100) / 1000)


def test_ctrl_c_and_a_slow_machine_keep_what_was_measured(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(one: Rung) -> None:
        if one.name == "threads" or one.kind == "start":
            return
        raise KeyboardInterrupt

    done = climbed(models, tmp_path, monkeypatch, lambda setup: ([turn()], 0.0), on_rung=interrupt)
    assert done.stopped == "interrupted"
    assert [one.name for one in done.rungs][:2] == ["naive", "threads"]
    times = iter(range(0, 10_000, 90))
    late = climbed(models, tmp_path, monkeypatch, lambda setup: ([turn()], 0.0), clock=lambda: next(times))
    assert late.stopped == "late"
    assert 1 < len(late.rungs) < len(STEPS)


def test_a_variant_that_fails_is_named_and_the_rest_goes_on(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(setup: Setup) -> tuple[list[Turn], float]:
        if setup.disk:
            raise BackendError("The disk is full.")
        return [turn(100 - 50 * setup.reuses)], 0.0

    done = climbed(models, tmp_path, monkeypatch, of)
    disk = next(one for one in done.rungs if one.name == "disk")
    assert (disk.is_taken, disk.why, disk.chat) == (False, "The disk is full.", None)
    ahead = next(one for one in done.rungs if one.name == "read-ahead")
    assert ahead.setup is not None
    assert (ahead.setup.disk, ahead.is_taken) == (False, True)
    assert done.is_complete


def test_the_plot_has_a_bar_for_each_rung(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = climbed(models, tmp_path, monkeypatch, lambda setup: ([turn(1000 - 500 * setup.reuses)], 0.0))
    root = ElementTree.fromstring(plot_ladder(done))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "0.50 s, 2.0x" in texts
    measured = [one for one in done.rungs if one.chat is not None]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}g"))) == len(measured)
    ElementTree.fromstring(plot_ladder(replace(done, rungs=())))


def test_workloads_are_as_large_as_the_time_allows() -> None:
    names = [choose_work(budget, 500, 50, 1.0).name for budget in (10_000, 250, 120, 1)]
    assert names == ["full", "half", "quarter", "least"]
    assert choose_work(300, 100, 10, 1.0) != choose_work(300, 1000, 100, 1.0)
    for work in WORKS:
        assert len(QUESTIONS) >= work.n_turns
        sessions = [session_of(n, work.n_turns, work.n_sessions) for n in range(work.n_turns)]
        assert sessions == sorted(sessions)
        assert set(sessions) == set(range(work.n_sessions))
    assert 750 < len(manual(760).split()) < 820
    assert manual() != document()
    assert len(set(items(12))) == 12


def test_divergence_is_that_of_the_definition(tmp_path: Path) -> None:
    p, q = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), np.array([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    for name, values in (("p", p), ("q", q)):
        np.save(tmp_path / f"{name}.npy", np.log(values).astype(np.float32))
    kl, top1 = _compare(tmp_path / "p.npy", tmp_path / "q.npy")
    assert kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-5)
    assert top1 == 0.5
    np.save(tmp_path / "tail.npy", np.log(q[-1:]).astype(np.float32))  # of two engines: the first half was prefilled
    assert _compare(tmp_path / "p.npy", tmp_path / "tail.npy")[0] == pytest.approx(
        (p * np.log(p / q)).sum(axis=1)[-1], rel=1e-5
    )
    np.save(tmp_path / "q.npy", np.full_like(q, np.nan, dtype=np.float32))
    with pytest.raises(BackendError, match="not finite"):  # and not 0, as if nothing was lost
        _compare(tmp_path / "p.npy", tmp_path / "q.npy")


def test_the_second_engine_is_asked_for_by_name_and_written_into_the_settings(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    pair = next(step for step in STEPS if step.name == "two-engines")
    assert isinstance(pair.variants(models, naive_setup(models)), str)  # the fake engine is the only one
    both = changed(models, engines=("llamacpp", "openvino"))
    found = pair.variants(both, naive_setup(both))
    assert [(one.title, one.setup.prefill_with) for one in found] == [("OpenVINO prefills, llama.cpp decodes", "openvino")]

    def of(setup: Setup) -> tuple[list[Turn], float]:
        return [turn(500.0 if setup.prefill_with else 1000.0, first_ms=100.0 if setup.prefill_with else 600.0)], 0.0

    done = climbed(both, tmp_path, monkeypatch, of)
    assert "two-engines" in [one.name for one in done.rungs if one.is_taken]
    assert settings_of(done, with_loss=False)["engine.prefill_with"] == "openvino"


def test_packed_weights_are_computed_in_floats_where_an_engine_can(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    by_name = {step.name: step for step in STEPS}
    assert isinstance(by_name["floats"].variants(models, naive_setup(models)), str)  # nothing is packed
    both = changed(models, engines=("llamacpp", "openvino"), packed=(models.start,), source=models.start)
    (found,) = by_name["floats"].variants(both, naive_setup(both))
    assert isinstance(found, Variant)
    assert (found.title.partition(" ")[2], found.setup.backend) == ("in floats, OpenVINO", "openvino")
    assert found.setup.kv_type == "f32"
    assert isinstance(by_name["two-engines"].variants(both, found.setup), str)  # no other engine reads its keys and values
    for name in ("int4", "kv-type"):
        assert not {one.setup.kv_type for one in by_name[name].variants(both, found.setup)} & {"f32"}

    def of(setup: Setup) -> tuple[list[Turn], float]:
        return [turn(500.0 if setup.kv_type == "f32" else 1000.0)], 0.0

    done = climbed(both, tmp_path, monkeypatch, of)
    assert "floats" in [one.name for one in done.rungs if one.is_taken]
    assert isinstance(by_name["draft"].variants(changed(both, draft=models.start), found.setup), str)  # it is the model
    other = changed(both, source=None)  # packed is another quantisation then, which is not the same weights
    assert isinstance(by_name["floats"].variants(other, naive_setup(other)), str)
    found_settings = settings_of(done, with_loss=False)
    assert (found_settings["backend"], found_settings["kv_type_k"]) == ("openvino", "f32")


def test_weights_in_floats_are_left_as_they_are(models: Models, tmp_path: Path) -> None:
    assert unpacked(models.start, tmp_path, ENTRY, 1, 1 << 40) is None
    assert unpacked(changed(models.start, format="onnx"), tmp_path, ENTRY, 1, 1 << 40) is None
