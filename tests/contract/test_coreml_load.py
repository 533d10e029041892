"""`edge.load` with a Core ML package, on what looks like a Mac: plan, trial, fallback, reply, disk, receipt."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

import edge
from edge.backends.coreml import backend as coreml
from edge.backends.coreml import trial as coreml_trial
from edge.backends.coreml.engine import Share
from edge.backends.coreml.trial import Verdict, why_failed
from edge.config import load_settings
from edge.errors import BackendUnavailableError
from edge.formats.artifact import open_artifact
from edge.formats.coreml import METADATA_KEY, read_info
from edge.plan import Plan
from edge.types import Sampling
from edge_convert.coreml.mil import MilModel
from edge_convert.coreml.normalise import normalise_package
from tests.contract.test_persistence import NO_LETTERS
from tests.standins.coremltools_predict import make_coremltools
from tests.unit.plan.test_choosing import device

GPU = Verdict(is_good=True, divergence=0.001, placement=(Share("GPU", 70, 0.9), Share("CPU", 10, 0.1)))


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan sees a Mac, the backend the stand-in, and the Neural Engine kills whoever tries this package on it."""
    profile = device("mac-m1", coreml=("ane", "metal", "cpu"))
    roomy = replace(profile, memory=replace(profile.memory, available_bytes=profile.memory.total_bytes))
    monkeypatch.setattr("edge.device.detection.probe", lambda *a, **k: roomy)
    monkeypatch.setattr(coreml, "load_coremltools", make_coremltools)
    good = msgspec.json.encode(GPU).decode()
    programs = {"CPU_AND_NE": "import os; os.abort()", "CPU_AND_GPU": f"print({good!r})", "CPU_ONLY": "1 / 0"}
    monkeypatch.setattr(coreml_trial, "trial_command", lambda path, units, cache_dir: [sys.executable, "-c", programs[units]])


def test_it_falls_back_replies_and_remembers(mac: None, coreml_package: Callable[[str], Path]) -> None:
    path = coreml_package("coreml")
    sampling = Sampling(temperature=0, max_tokens=6, logit_bias=NO_LETTERS)
    said: list[Any] = []
    for _ in range(2):
        with edge.load(str(path), cache="disk") as assistant:
            plan = assistant.plan
            assert (plan.backend, plan.accelerator) == ("coreml", "metal")
            receipt = plan.explain()
            assert "ane was chosen; the Neural Engine is not used: A trial of model.mlpackage died of SIGABRT" in receipt
            assert "GPU 90 % of the work (70 operations), CPU 10 % of the work (10 operations)" in receipt
            json.dumps(plan.to_dict())
            conversation = assistant.conversation(system="the fox ran over a hill and saw two dogs near an old house")
            reply = conversation.send("what did the fox see near the river", sampling=sampling)
            said.append((reply.wait(), reply.usage.n_restored))
    artifact, cache_dir = open_artifact(path), load_settings().paths.cache_dir
    notes = {name: why_failed(artifact, name, cache_dir) for name in ("ane", "metal", "cpu")}  # type: ignore[arg-type]
    assert notes == {"ane": "A trial of model.mlpackage died of SIGABRT", "metal": "", "cpu": ""}
    assert said[0][0] == said[1][0]
    assert (said[0][1], said[1][1] > 20) == (0, True), "the second process finds on the disk what the first one read"


@pytest.fixture
def folder(coreml_package: Callable[[str], Path], tmp_path: Path) -> Path:
    """One model as a package for the Neural Engine and as one for the GPU, as `edge convert` leaves them."""
    package = coreml_package("coreml")
    for variant in ("ane", "gpu"):
        made = tmp_path / "both" / f"coreml-{variant}"
        shutil.copytree(package.parent, made, ignore=shutil.ignore_patterns("cache"))
        info = read_info(MilModel(made / package.name).user_defined_metadata, variant)
        text = msgspec.json.encode(msgspec.structs.replace(info, variant=variant)).decode()
        normalise_package(made / package.name, {METADATA_KEY: text})
        (made / "manifest.json").write_text(json.dumps({"name": "Tiny", "source_files": [{"sha256": "0" * 64}]}))
    return tmp_path / "both"


def test_where_the_neural_engine_fails_the_package_for_the_gpu_is_used(mac: None, folder: Path) -> None:
    told: list[str] = []

    def load() -> Plan:
        with edge.load(str(folder), on_progress=lambda stage, share: told.append(stage)) as assistant:
            return assistant.plan

    for plan in (load(), load()):
        assert (plan.artifact.path.parent.name, plan.accelerator) == ("coreml-gpu", "metal")
        assert "coreml ane does not work on ane: A trial of model.mlpackage died of SIGABRT" in plan.explain()
    trials = [stage for stage in dict.fromkeys(told) if "once per model" in stage]
    assert [stage.partition(",")[0] for stage in trials] == ["trying the Neural Engine", "trying the GPU"]


def test_what_is_required_is_refused_where_it_does_not_work(mac: None, coreml_package: Callable[[str], Path]) -> None:
    with pytest.raises(BackendUnavailableError, match="Neural Engine is not used") as caught:
        edge.load(str(coreml_package("coreml")), require="ane")
    assert "--require metal" in caught.value.hint


@pytest.mark.skipif(sys.platform == "darwin", reason="there it can be run")
def test_away_from_a_mac_it_says_what_to_do(coreml_package: Callable[[str], Path]) -> None:
    with pytest.raises(BackendUnavailableError, match="Mac") as caught:
        edge.load(str(coreml_package("coreml")))
    assert "GGUF" in caught.value.hint
