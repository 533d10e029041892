"""From a name to an assistant: what arguments and advice do, and Ctrl-C while the engine loads."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edge
from edge import loading
from edge.backends.fake import FakeBackend
from edge.catalog import load_catalog
from edge.config import KVSettings, load_settings
from edge.conversation import ConversationStore
from edge.device.sensors import Readings
from edge.errors import (
    BackendUnavailableError,
    ConfigError,
    ModelTooLargeError,
    UsageError,
)
from edge.formats.artifact import Artifact
from edge.plan import make_plan
from edge.plan.receipt import MemoryEstimate, Plan, PlanRequest
from edge.types import Sampling


def artifact(name: str, *made_from: str) -> Artifact:
    return Artifact(Path("model.gguf"), "gguf", name, 1, made_from=made_from)


INTERRUPTED = """
import signal, sys, threading
import edge.backends
from edge import loading
from edge.backends.fake import FakeBackend
from edge.errors import BackendError, CancelledError

backend, is_late = FakeBackend(), sys.argv[1] == "late"
signal.signal(signal.SIGINT, signal.default_int_handler)

def open_backend(plan, *, on_progress):
    # What is sent to the process may reach a library's thread, which does not wake the main one.
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    while on_progress(0.1):
        pass
    if not is_late:
        raise CancelledError("Loading was stopped.")
    return backend

edge.backends.open_backend = open_backend
try:
    loading._open(None, None)
except KeyboardInterrupt:
    print("interrupted")
try:
    backend.length(0)
except BackendError:
    print("closed")
"""


@pytest.mark.parametrize(("when", "said"), [("early", "interrupted\n"), ("late", "interrupted\nclosed\n")])
def test_an_interrupt_stops_the_load_and_closes_what_was_loaded(when: str, said: str) -> None:
    """In a process of its own: an interrupt that comes late must not end the tests."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, when], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == (said, "")


def test_progress_that_says_no_stops_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.backends.open_backend", lambda plan, *, on_progress: on_progress(0.5))
    seen: list[tuple[str, float]] = []
    assert loading._open(None, lambda stage, share: seen.append((stage, share))) is True  # type: ignore[arg-type,comparison-overlap]
    assert loading._open(None, lambda stage, share: False) is False  # type: ignore[arg-type,comparison-overlap]
    assert seen == [("loading", 0.5)]


def test_memory_that_runs_out_while_loading_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_backend(plan: Any, *, on_progress: Callable[[float], bool]) -> Any:
        raise MemoryError

    monkeypatch.setattr("edge.backends.open_backend", open_backend)
    with pytest.raises(ModelTooLargeError, match="mine"):
        loading._open(SimpleNamespace(artifact=artifact("mine")), None)  # type: ignore[arg-type]


def test_what_the_catalogue_advises_yields_to_what_the_user_set() -> None:
    sampling, system = loading._advised(load_settings({}), artifact("smollm2-135m"))
    assert (sampling.temperature, sampling.top_p, system) == (0.2, 0.9, "")
    sampling, system = loading._advised(
        load_settings({"sampling.temperature": 0.7, "system": "Be brief"}), artifact("smollm2-135m")
    )
    assert (sampling.temperature, sampling.top_p, system) == (0.7, 0.9, "Be brief")
    sampling, system = loading._advised(load_settings({}), artifact("a file of mine"))
    assert (sampling.temperature, system) == (0.7, None)


def test_a_converted_model_is_advised_as_the_one_it_was_made_from() -> None:
    catalogued = load_catalog()["smollm2-135m"].artifacts[0].sha256
    assert catalogued is not None
    made = artifact("SmolLM2-135M-Instruct", "0" * 64, catalogued)
    sampling, system = loading._advised(load_settings({}), made)
    assert (sampling.temperature, system) == (0.2, "")


def test_the_receipt_ends_with_what_runs_where() -> None:
    engine = FakeBackend()
    plan = Plan(**{field.name: () if field.name == "choices" else None for field in fields(Plan)})  # type: ignore[arg-type]
    assert loading._with_placement(plan, engine) == plan
    engine.info.details["placement"] = "CPU 100 % (880 nodes)"
    assert [choice.value for choice in loading._with_placement(plan, engine).choices] == ["CPU 100 % (880 nodes)"]
    engine.info.details["several replies"] = "in one pass"
    assert [choice.what for choice in loading._with_placement(plan, engine).choices] == ["placement", "several replies"]


@pytest.mark.parametrize(
    ("accelerator", "can_change", "note"),
    [
        ("cpu", True, "low battery: 2 of 4 threads"),
        ("cpu", False, "low battery: rests 50 % of the time"),  # Core ML
        ("ane", False, "low battery: rests 50 % of the time"),
        ("cuda", True, "low battery: rests 50 % of the time"),
    ],
)
def test_a_governor_speaks_of_threads_only_where_the_engine_changes_them(accelerator: str, can_change: bool, note: str) -> None:
    engine = FakeBackend()
    engine.capabilities = replace(engine.capabilities, threads=can_change)
    known: dict[str, Any] = {"accelerator": accelerator, "n_threads": 4, "n_threads_batch": 4}
    values = {field.name: None for field in fields(Plan)} | known | {"memory": MemoryEstimate(0, 0, 0, 0, 0)}
    governor = loading._make_governor(load_settings({}), Plan(**values), engine)
    assert governor is not None
    assert governor.step(Readings(is_on_battery=True, battery_percent=20), 0.0).note == note


def test_arguments_win_over_settings_and_are_checked() -> None:
    settings = load_settings({"context": 1024, "threads": 2})
    merged = loading._merge(settings, {"context": 2048, "threads": None})
    assert (merged.context, merged.threads) == (2048, 2)
    merged = loading._merge(load_settings({"engine.max_gap_ms": 7}), {"engine.parallel": 3})
    assert (merged.engine.parallel, merged.engine.max_gap_ms) == (3, 7)
    for wrong in ({"context": "many"}, {"require": "abacus"}, {"context": 0}):
        with pytest.raises(UsageError):
            loading._merge(settings, wrong)  # type: ignore[arg-type]


def test_a_wrong_argument_is_named_as_it_was_given() -> None:
    for settings in (None, load_settings({})):
        with pytest.raises(UsageError) as caught:
            loading.load("smollm2-135m", settings=settings, kv_type="q9")
        assert caught.value.message == 'kv_type cannot be "q9".'


def test_a_required_accelerator_that_is_not_here_fails_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.catalog.api.resolve", lambda *args, **options: pytest.fail("the model was looked for"))
    with pytest.raises(BackendUnavailableError):
        loading.plan_model("smollm2-135m", settings=load_settings({"require": "ane"}))


def test_exactness_and_several_replies_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="allows one reply at a time"):
        loading.plan_model("smollm2-135m", settings=load_settings({"kv.exact": True, "engine.parallel": 2}))


def test_the_settings_of_several_replies_reach_plan_and_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests: list[PlanRequest] = []

    def choose_plan(device: Any, candidates: Any, request: PlanRequest, **options: Any) -> Plan:
        requests.append(request)
        return make_plan(device, candidates[0][0], request)

    monkeypatch.setattr("edge.catalog.api.resolve_all", lambda *args, **options: [artifact("m")])
    monkeypatch.setattr("edge.plan.choosing.choose_plan", choose_plan)
    for exact, parallel, expected in ((False, 7, 7), (False, None, None), (True, None, 1), (True, 1, 1)):
        given = {
            "backend": "fake",
            "kv.exact": exact,
            "engine.parallel": parallel,
            "engine.max_gap_ms": 123,
            "kv.enabled": False,
        }
        settings = load_settings({name: value for name, value in given.items() if value is not None})
        loading.plan_model("m", settings=settings)
        assert requests[-1].n_seq == expected
    with pytest.raises(UsageError, match="parallel cannot be 0"):
        loading.load("m", parallel=0)
    with loading.load("m", settings=load_settings({"backend": "fake"}), parallel=6, cache="memory") as ai:
        assert ai._scheduler.n_seq == 6
    with loading.load("m", settings=settings) as ai:
        assert ai._scheduler._timer.max_gap_ms == 123
        assert ai._scheduler.call(lambda backend: backend.capabilities.n_seq) == 1


def test_a_model_that_changed_while_it_was_loaded_gets_no_cache_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"a" * 100)
    plan: Any = SimpleNamespace(artifact=Artifact(path, "gguf", "m", 100))
    stamps = loading._stamps(plan.artifact)
    settings = load_settings({})
    disk = loading._open_disk(settings, plan, FakeBackend(), stamps)
    assert disk is not None
    disk.blocks.close()
    state = path.stat()
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert loading._open_disk(settings, plan, FakeBackend(), stamps) is None


@pytest.mark.parametrize(
    "wrong", [{"settings": {"kv.enabled": False}}, {"store": "chats.db"}, {"context": "many"}, {"model": 5}]
)
def test_an_argument_of_the_wrong_type_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.setattr(loading, "_open_best", lambda *arguments: pytest.fail("it was loaded"))
    with pytest.raises(UsageError) as caught:
        loading.load(**{"model": "smollm2-135m", **wrong})
    assert caught.value.hint
    assert next(iter(wrong)) in caught.value.message


def test_a_library_obeys_neither_strangers_nor_the_users_settings_file(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (own_home / "config.toml").write_text('system = "Answer in Latin."\n[sampling]\nstop = ["e"]\nmax_tokens = 2\n')
    monkeypatch.setenv("EDGE_NODE_ID", "jetson-17")
    monkeypatch.setenv("EDGE_BACKEND_URL", "https://example.org")
    monkeypatch.setenv("EDGE_CONTEXT", "production")
    monkeypatch.setenv("HF_HUB_OFFLINE", "perhaps")
    monkeypatch.setenv("EDGE_THREADS", "1")
    merged = loading._merge(None, {"context": None})
    assert (merged.system, merged.sampling, merged.context, merged.threads) == ("", Sampling(), None, 1)
    assert merged.paths.models_dir == own_home / "models"
    for name in ("EDGE_NODE_ID", "EDGE_BACKEND_URL", "EDGE_CONTEXT", "HF_HUB_OFFLINE"):
        assert name in caplog.text, "not in silence"
    asked = loading._merge(edge.load_settings(strict=False), {})
    assert (asked.system, asked.sampling.max_tokens, asked.threads) == ("Answer in Latin.", 2, 1)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        edge.load_settings()
    assert loading._merge(edge.Settings(), {}).threads is None, "nothing of the environment"


def test_the_kv_cache_is_on_the_disk_only_if_the_conversations_are_or_somebody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wants(store: ConversationStore | None = None, settings: edge.Settings | None = None, cache: str | None = None) -> bool:
        return loading._wants_disk(cache, settings, loading._merge(settings, {}), store)

    with ConversationStore(None) as memory, ConversationStore(tmp_path / "c.db") as disk:
        assert [wants(), wants(memory), wants(disk)] == [False, False, True]
        assert [wants(memory, cache="disk"), wants(disk, cache="memory")] == [True, False]
        assert [wants(memory, edge.Settings()), wants(disk, edge.Settings())] == [False, True]
        assert wants(memory, edge.load_settings()), "as the command line does"
        for settings in (edge.load_settings({"kv.enabled": False}), edge.Settings(kv=KVSettings(enabled=False))):
            assert [wants(disk, settings), wants(disk, settings, "disk")] == [False, True]
        monkeypatch.setenv("EDGE_KV_ENABLED", "true")
        assert wants(memory)
    with pytest.raises(UsageError, match="cache"):
        loading.load("smollm2-135m", cache="dsik")  # type: ignore[arg-type]


def test_every_option_of_load_is_one_of_aload() -> None:
    options = list(inspect.signature(loading.load).parameters)
    assert ["model", *loading.LoadOptions.__annotations__] == options


def test_a_settings_file_that_is_broken_is_no_business_of_a_library(own_home: Path) -> None:
    (own_home / "config.toml").write_text("system = ")
    assert loading._merge(None, {}).system == ""


def test_the_log_goes_nowhere_unless_the_program_says_where() -> None:
    code = "import edge, logging; logging.getLogger('edge.kv').warning('the disk is full')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")
