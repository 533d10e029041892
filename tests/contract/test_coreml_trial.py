"""Trying a Core ML package in a child process: what is good, what is not, what is remembered."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

from edge.backends.coreml import trial as coreml_trial
from edge.backends.coreml.trial import Verdict, load_verdict, main, remembered_verdict
from edge.errors import BackendError, BackendUnavailableError, CancelledError
from edge.formats.coreml import CoreMLPackage, read_package
from tests.contract.coreml import coreml_plan, open_coreml
from tests.standins.coremltools_predict import make_coremltools

Child = Callable[[str], Callable[..., list[str]]]
REAL = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
sys.modules["torch"] = None  # coremltools would spend seconds on importing it
from tests.standins.coremltools_predict import make_coremltools
from edge.backends.coreml.trial import main
main(*sys.argv[2:], coremltools=make_coremltools())
"""


@pytest.fixture
def package(coreml_package: Callable[[str], Path]) -> CoreMLPackage:
    """A package with a state."""
    return read_package(coreml_package("coreml"))


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """Makes a command that runs a program, and counts how often in `tmp_path / "runs"`."""

    def command_of(program: str) -> Callable[..., list[str]]:
        counting = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n"

        def command(path: Path, units: str, cache_dir: Path) -> list[str]:
            return [sys.executable, "-c", counting + program, json.dumps(sys.path), str(path), units, str(cache_dir)]

        return command

    return command_of


def n_runs(tmp_path: Path) -> int:
    path = tmp_path / "runs"
    return len(path.read_text()) if path.exists() else 0


def said(verdict: Verdict) -> str:
    """A program that answers with a verdict."""
    return f"print({msgspec.json.encode(verdict).decode()!r})"


def test_a_good_package_is_found_good_and_that_is_remembered(package: CoreMLPackage, child: Child, tmp_path: Path) -> None:
    digest = package.sha256()
    assert remembered_verdict(digest, "CPU_AND_NE", tmp_path) is None
    verdict = load_verdict(package, digest, "CPU_AND_NE", tmp_path, command=child(REAL))
    assert verdict.is_good and verdict.note == ""
    assert verdict.divergence is not None and verdict.divergence < 1e-3
    assert [share.device for share in verdict.placement] == ["CPU"]
    assert load_verdict(package, digest, "CPU_AND_NE", tmp_path, command=child("1 / 0")) == verdict
    assert n_runs(tmp_path) == 1
    assert list((tmp_path / "coreml").glob("*.mlmodelc")), "the child compiled it where the parent looks"
    assert remembered_verdict(digest, "CPU_ONLY", tmp_path) is None
    assert remembered_verdict("0" * 64, "CPU_AND_NE", tmp_path) is None


def test_numbers_that_were_not_meant_are_found(
    package: CoreMLPackage, child: Child, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(function: str, outputs: dict[str, Any]) -> None:
        if "logits" in outputs:
            outputs["logits"] *= 0.8

    main(str(package.path), "CPU_AND_NE", str(tmp_path), coremltools=make_coremltools(fault=wrong))
    answer = msgspec.json.decode(capsys.readouterr().out.splitlines()[-1], type=Verdict)
    assert answer.divergence is not None and answer.divergence > coreml_trial.SAME_NATS
    verdict = load_verdict(package, "0" * 64, "CPU_AND_NE", tmp_path, command=child(said(answer)))
    assert not verdict.is_good
    assert "wrong numbers" in verdict.note and "nats" in verdict.note


@pytest.mark.parametrize(
    ("program", "note"),
    [
        ("import os; os.abort()", "died of SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL; the system may have run out of memory"),
        ("import sys; sys.exit('Unable to load the program')", "ended with code 1 (Unable to load the program)"),
        ("import sys; sys.exit(3)", "ended with code 3"),
    ],
)
def test_what_kills_or_fails_the_child_is_remembered_and_refused(
    package: CoreMLPackage, child: Child, plan_for: Any, tmp_path: Path, program: str, note: str
) -> None:
    digest = package.sha256()
    verdict = load_verdict(package, digest, "CPU_AND_NE", tmp_path, command=child(program))
    assert (verdict.is_good, verdict.note) == (False, f"A trial of model.mlpackage {note}")
    with pytest.raises(BackendUnavailableError, match=re.escape(note)) as caught:
        open_coreml(coreml_plan(plan_for, package.path), tmp_path, verdict=None)
    assert caught.value.hint
    assert n_runs(tmp_path) == 1


def test_the_next_accelerator_is_tried_and_the_model_says_so(
    package: CoreMLPackage, child: Child, plan_for: Any, tmp_path: Path
) -> None:
    digest = package.sha256()
    good = Verdict(is_good=True, divergence=0.001)
    load_verdict(package, digest, "CPU_AND_NE", tmp_path, command=child("import os; os.abort()"))
    load_verdict(package, digest, "CPU_AND_GPU", tmp_path, command=child(said(good)))
    plan = coreml_plan(plan_for, package.path, fallbacks=("metal", "cpu"))
    with open_coreml(plan, tmp_path, verdict=None) as backend:
        details = backend.info.details
        assert (details["accelerator"], details["compute units"]) == ("metal", "CPU_AND_GPU")
        assert "the Neural Engine is not used: A trial of model.mlpackage died of SIGABRT" in details["tried"]
    load_verdict(package, digest, "CPU_ONLY", tmp_path, command=child("import sys; sys.exit(1)"))
    plan = coreml_plan(plan_for, package.path, fallbacks=("cpu",))
    with pytest.raises(BackendUnavailableError, match=r"^The Neural Engine is not used: .*SIGABRT; the CPU is not used: .*1\."):
        open_coreml(plan, tmp_path, verdict=None)


def test_a_child_that_hangs_counts_as_one_that_fails(package: CoreMLPackage, child: Child, tmp_path: Path) -> None:
    verdict = load_verdict(
        package, "0" * 64, "CPU_ONLY", tmp_path, command=child("import time; time.sleep(600)"), timeout_s=0.3
    )
    assert not verdict.is_good and "did not end within 0.3 s" in verdict.note


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "stopped from outside"),
        ("print('noise')", "no answer that can be read"),
        ("", "no answer that can be read"),
    ],
)
def test_a_child_that_says_nothing_is_not_remembered(
    package: CoreMLPackage, child: Child, tmp_path: Path, program: str, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        load_verdict(package, "0" * 64, "CPU_ONLY", tmp_path, command=child(program))
    assert remembered_verdict("0" * 64, "CPU_ONLY", tmp_path) is None


def test_a_trial_can_be_stopped_and_leaves_no_process(package: CoreMLPackage, child: Child, tmp_path: Path) -> None:
    written = tmp_path / "pid"
    program = f"import os, time; open({str(written)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    def stop() -> None:
        if written.exists() and written.read_text():
            raise CancelledError("Loading was stopped.")

    with pytest.raises(CancelledError):
        load_verdict(package, "0" * 64, "CPU_ONLY", tmp_path, command=child(program), on_wait=stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)


def test_no_child_can_be_started(package: CoreMLPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="cannot be started"):
        load_verdict(package, "0" * 64, "CPU_ONLY", tmp_path, command=lambda *a: [str(tmp_path / "nothing")])
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendError, match="no Python interpreter"):
        load_verdict(package, "0" * 64, "CPU_ONLY", tmp_path)


def test_the_real_command_runs_the_module_away_from_a_mac(package: CoreMLPackage, tmp_path: Path) -> None:
    """On Linux it gets as far as finding out that this is not a Mac."""
    if sys.platform == "darwin":
        pytest.skip("here the trial would be a real one")
    verdict = load_verdict(package, package.sha256(), "CPU_ONLY", tmp_path)
    assert not verdict.is_good and "run on a Mac only" in verdict.note


def test_where_nothing_can_be_kept_the_answer_still_counts(package: CoreMLPackage, child: Child, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    good = Verdict(is_good=True, divergence=0.001)
    assert load_verdict(package, "0" * 64, "CPU_ONLY", tmp_path / "file", command=child(said(good))) == good
    path = coreml_trial.verdict_path("0" * 64, "CPU_ONLY", tmp_path)
    path.parent.mkdir()
    path.write_text('{"is_good": "maybe"}')
    assert remembered_verdict("0" * 64, "CPU_ONLY", tmp_path) is None


def test_loading_is_stopped_while_a_trial_runs(
    package: CoreMLPackage, plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: Child
) -> None:
    monkeypatch.setattr(coreml_trial, "trial_command", child("import time; time.sleep(600)"))
    started = threading.Event()
    threading.Thread(target=lambda: (time.sleep(0.3), started.set()), daemon=True).start()
    told: list[str] = []

    def report(share: float, stage: str = "loading") -> bool:
        told.append(stage)
        return not started.is_set()

    with pytest.raises(CancelledError):
        open_coreml(coreml_plan(plan_for, package.path), tmp_path, verdict=None, on_progress=report)
    assert told[0] == "trying the Neural Engine, once per model (0 s):"
