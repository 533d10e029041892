"""The cost of a turn to the device, stored with the reply."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

import edge.device.cost
from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.device.cost import TurnMeter
from edge.device.energy import CounterMeter
from edge.types import Sampling

GREEDY = Sampling(temperature=0)


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's counters of a processor package, and what they count."""
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "1000000000"), ("energy_uj", "400000000")):
        (zone / name).write_text(text)
    monkeypatch.setattr(edge.device.cost, "_find_counter", lambda: CounterMeter(tmp_path))
    return zone / "energy_uj"


def test_memory_is_what_the_system_says() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    ballast = bytearray(64 << 20)
    cost = TurnMeter().read()
    assert cost.memory_bytes - before > 0.9 * len(ballast)
    assert cost.peak_bytes >= cost.memory_bytes - (1 << 20)


def test_energy_is_what_the_counter_went_on_by(powercap: Path) -> None:
    meter = TurnMeter()
    powercap.write_text("412500000")
    assert meter.read().energy_j == 12.5
    powercap.write_text("100000000")  # it has run over
    assert meter.read().energy_j == pytest.approx(700.0, abs=0.001)


def test_without_a_counter_energy_is_not_known(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = TurnMeter()
    powercap.unlink()
    assert meter.read().energy_j is None
    monkeypatch.undo()
    monkeypatch.setattr("edge.device.energy._POWERCAP", Path("/nowhere"))
    monkeypatch.setattr(CounterMeter.__init__, "__defaults__", (Path("/nowhere"),))
    assert TurnMeter().read().energy_j is None


def test_a_record_has_all_that_one_wants_to_know_of_a_turn(powercap: Path) -> None:
    def answer(message: str) -> str:
        powercap.write_text("403000000")
        return "yes, that is so"

    with Assistant(FakeBackend(script=answer), sampling=GREEDY) as assistant:
        conversation = assistant.conversation()
        reply = conversation.send("hello")
        reply.wait()
        record = json.loads(json.dumps(conversation.messages[-1].record))
    assert record["timing"]["first_token_ms"] > 0
    assert reply.timing.tokens_per_s(record["usage"]["n_generated"]) > 0
    assert {"n_prompt", "n_reused", "n_restored", "saved_ms"} <= record["usage"].keys()
    assert record["cost"]["memory_bytes"] > 1 << 20
    assert record["cost"]["energy_j"] == reply.cost.energy_j == 3.0
    assert record["held_back"] == ""
