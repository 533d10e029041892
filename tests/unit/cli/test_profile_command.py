"""edge profile, with a fake model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.bench.trace import STAGES
from edge_cli.app import App
from tests.unit.bench.fakes import write_gguf
from tests.unit.cli.conftest import Call


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine does and can do is measured elsewhere."""
    monkeypatch.setattr("edge_cli.profile.load_of_others", lambda: 0.0)
    monkeypatch.setattr("edge.bench.process.bandwidth_here", lambda n_threads, n_bytes: 1e15)


def test_it_says_where_the_time_goes_and_what_to_change(call: Call, fake_app: Callable[..., App], tmp_path: Path) -> None:
    done = call("profile", "hello", app=fake_app(delay_s=0.002))
    assert done.code == 0
    rows = [line.split()[0] for line in done.out.splitlines() if line.strip()]
    assert [row for row in rows if row in STAGES] == [stage for stage in STAGES if stage in rows]
    assert {"template", "prefill", "decode", "sampling", "save", "total"} <= set(rows)
    assert "What to change: Decode takes" in done.out


def test_json_has_every_stage(call: Call, fake_app: Callable[..., App]) -> None:
    done = call("profile", "--json", "-n", "5", app=fake_app())
    found = json.loads(done.out)
    assert [one["stage"] for one in found["stages"]] == list(STAGES)
    assert sum(one["ms"] for one in found["stages"]) == pytest.approx(found["total_ms"])
    assert found["n_generated"] == 5
    assert found["limits"] == []
    assert found["advice"]
    # The names that scripts rely on.
    assert set(found) == {
        "model", "engine", "accelerator", "n_prompt", "n_reused", "n_restored", "n_generated", "n_drafted", "n_accepted",
        "first_token_ms", "total_ms", "stages", "bandwidth_bytes_per_s", "limits", "held_back", "busy_processors", "advice",
    }  # fmt: skip


def test_prefill_and_decode_are_compared_with_the_bandwidth(call: Call, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    done = call("profile", "-m", str(model), "--backend", "fake", "-n", "5", "hello")
    assert done.code == 0, done.err
    assert "prefill: compute-bound." in done.out
    assert "1 pass reads" in done.out
    assert "of the memory bandwidth of 1000000.0 GB/s" in done.out
    found = json.loads(call("profile", "-m", str(model), "--backend", "fake", "-n", "5", "hello", "--json").out)
    assert [one["phase"] for one in found["limits"]] == ["prefill", "decode"]
    assert found["limits"][1]["n_passes"] == 4  # the first token follows from prefill


def test_a_cold_profile_reuses_and_stores_nothing(call: Call, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    words = ("profile", "-m", str(model), "--backend", "fake", "-n", "5", "--json", "word " * 40)

    def n_reused(*more: str) -> int:
        found = json.loads(call(*words, *more).out)
        return int(found["n_reused"])

    assert n_reused("--cold") == 0
    assert n_reused() == 0
    assert n_reused() > 100
    assert n_reused("--cold") == 0


def test_nothing_is_left_of_the_conversation(call: Call, fake_app: Callable[..., App]) -> None:
    from edge.config import load_settings

    assert call("profile", "hello", app=fake_app()).code == 0
    data = load_settings().paths.data_dir
    assert [path.name for path in data.iterdir() if path.name.startswith("profile-")] == []
    assert json.loads(call("conversations", "ls", "--json").out) == []


def test_a_trace_is_written(call: Call, fake_app: Callable[..., App], tmp_path: Path) -> None:
    file = tmp_path / "turn.json"
    done = call("profile", "hello", "-n", "5", "--trace", str(file), app=fake_app())
    assert str(file) in done.err
    found = json.loads(file.read_text())
    names = [event["name"] for event in found["traceEvents"]]
    assert names.count("sampling") == 5
    assert found["otherData"]["advice"]


def test_a_folder_for_the_trace_that_is_missing_is_an_error_before_the_model_is_loaded(
    call: Call, fake_app: Callable[..., App], tmp_path: Path
) -> None:
    done = call("profile", "hello", "--trace", str(tmp_path / "no" / "turn.json"), app=fake_app())
    assert (done.code, done.out) == (1, "")
    assert "there is no folder" in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_trace_that_cannot_be_written_is_an_error_after_the_result(call: Call, fake_app: Callable[..., App]) -> None:
    done = call("profile", "hello", "--trace", "/dev/full", app=fake_app())
    assert done.code == 1
    assert "What to change" in done.out
    assert "cannot be written" in done.err
