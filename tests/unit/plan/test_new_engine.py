"""An engine that came in through its three doors (tests/standins/toy.py) is seen everywhere, without any other edit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edge
from edge.backends import open_backend
from edge.bench.candidates import Grid, find_candidates
from edge.bench.tune import TuneOptions, tune
from edge.config import load_settings
from edge.device import CapturedSystem, DeviceProfile, probe
from edge.errors import BackendUnavailableError, ConfigError, UsageError
from edge.formats.artifact import Artifact, open_artifact
from edge.plan import PlanRequest, make_plan
from edge.plan.choosing import choose_plan, rank_formats
from edge.plan.tuning import look_up
from edge.registry import ENGINES
from edge_chat.widgets.status import StatusValues
from edge_cli.checks import check_engines
from edge_cli.completers import complete_backend
from edge_cli.devices import device_rows
from edge_cli.settings_check import check_setting
from tests.standins.toy import ROW, ToyBackend
from tests.unit.bench.fakes import FakeWorker, Machine, write_gguf

CAPTURE = (Path(__file__).parents[2] / "fixtures" / "devices" / "raspberry-pi-5.txt").read_text()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "toy", ROW)


def device(libraries: str = "libtoy_qnn.so") -> DeviceProfile:
    return probe(CapturedSystem(f"{CAPTURE}\n==> @package toy_engine 1.2 <==\n{libraries}\n"))


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return open_artifact(write_gguf(tmp_path / "tiny.gguf"))


def test_the_probe_finds_it() -> None:
    found = device().engine("toy")
    assert found is not None
    assert (found.package, found.version, found.accelerators) == ("toy-engine", "1.2", ("qnn", "cpu"))
    assert ("engine", "toy-engine 1.2, for qnn, cpu") in device_rows(device())
    absent = probe(CapturedSystem(CAPTURE))
    assert ("engine", "toy-engine not installed. Install it: pip install toy-engine") in device_rows(absent)
    texts = {check.text: check.hint for check in check_engines(absent)}
    assert texts["toy-engine is not installed, so no GGUF model can be run"] == "Install it: pip install toy-engine"


def test_the_plan_and_its_receipt_follow_its_row(model: Artifact) -> None:
    plan = make_plan(device(), model, PlanRequest(backend="toy"))
    assert (plan.backend, plan.accelerator, plan.n_seq) == ("toy", "qnn", 3)
    lines = {choice.what: (choice.value, choice.reason) for choice in plan.choices}
    assert lines["backend"] == ("toy", "asked for; reads gguf; toy-engine 1.2 is installed, built for qnn and cpu")
    assert lines["threads, prefill"][1] == "as for decode: this engine has one number for both"
    assert lines.keys().isdisjoint({"flash attention", "file mapping", "weight repacking", "layers offloaded"})
    for asked in (PlanRequest(backend="toy", flash_attention=False), PlanRequest(backend="toy", threads_batch=2)):
        with pytest.raises(UsageError, match="Toy Engine"):
            make_plan(device(), model, asked)
    assert make_plan(device(), model).backend == "llamacpp", "which is preferred"
    assert choose_plan(device(), [(model, None), (model, None)], PlanRequest(backend="toy")).backend == "toy"


def test_what_is_required_is_found_or_refused(model: Artifact) -> None:
    assert make_plan(device(), model, PlanRequest(require="qnn")).backend == "toy", "the engine that can is used"
    with pytest.raises(BackendUnavailableError, match="toy-engine was built without QNN") as error:
        make_plan(device("libtoy.so"), model, PlanRequest(backend="toy", require="qnn"))
    assert error.value.hint == "Build it with QNN."
    with pytest.raises(BackendUnavailableError, match="toy backend cannot use CUDA; it computes on: qnn, cpu"):
        rank_formats(device(), PlanRequest(backend="toy", require="cuda"), must_run=True)
    assert rank_formats(device(), PlanRequest(backend="toy")) == ("gguf",)


def test_settings_and_completions_know_it() -> None:
    assert check_setting("backend", load_settings({"backend": "toy"})) == ""
    with pytest.raises(ConfigError) as error:
        check_setting("backend", load_settings({"backend": "toi"}))
    assert error.value.hint == "Did you mean toy?"
    assert [item.value for item in complete_backend(None, None, "to")] == ["toy"]  # type: ignore[arg-type]
    assert "QNN Toy Engine" in [text for _, text in StatusValues(backend="toy", accelerator="qnn").parts()]


def test_it_is_measured_and_tuned(model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.backends.llamacpp.canary.load_safety", lambda cache_dir: None)
    every = find_candidates(device(), [model], Grid(), n_tokens=10, cache_dir=tmp_path)
    assert [candidate.plan.backend for candidate in every] == ["llamacpp", "toy"]
    machine = Machine(lambda given: (0.1 if given.threads == 2 else 0.2, 0.1))
    [report] = tune(
        device(),
        [model],
        TuneOptions(600.0, backends=("toy",)),
        cache_dir=tmp_path,
        open_worker=lambda plan, **_: FakeWorker(machine, plan),
        clock=machine.clock,
    )
    assert (report.tuning.backend, report.tuning.threads, report.tuning.threads_batch) == ("toy", 2, 2)
    assert {given.flash_attention for given in machine.measured} == {True}, "it has no such setting"
    tuned = look_up(device(), model, cache_dir=tmp_path)
    assert make_plan(device(), model, PlanRequest(backend="toy"), tuned=tuned).n_threads == 2
    made = make_plan(device(), model, tuned=tuned)
    assert (made.backend, made.accelerator) == ("toy", "qnn"), "the engine that was measured, not the first that can run it"
    assert dict(made.pass_costs)[8] == 1.8


def test_a_model_is_loaded_and_answers(model: Artifact, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.device.detection.probe", device)
    with edge.load(str(model.path), backend="toy") as assistant:
        assert (assistant.plan.backend, assistant.plan.accelerator) == ("toy", "qnn")
        assert "You said: **Hello**" in assistant.generate("Hello").wait()
    with open_backend(assistant.plan) as backend:
        assert isinstance(backend, ToyBackend)


def test_its_entry_holds_it_to_the_contract() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.standins.toy", "-p", "no:cacheprovider", "-k", "toy or entry"]
    done = subprocess.run([*command, "tests/contract/test_cache.py", "tests/contract/test_entries.py"],
                          cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "passed" in done.stdout


def test_without_its_row_nothing_knows_it(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ENGINES, "toy")
    with pytest.raises(BackendUnavailableError, match="no backend 'toy'"):
        make_plan(device(), model, PlanRequest(backend="toy"))
