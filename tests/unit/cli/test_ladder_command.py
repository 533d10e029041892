"""edge ladder, with a fake backend in its processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from edge.bench import ladder as ladder_module
from edge.bench.ladder_steps import STEPS
from edge.config import load_settings
from edge.config.toml import set_in_file
from tests.unit.bench.fakes import write_gguf
from tests.unit.cli.conftest import Call


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_module, "STEPS", tuple(step for step in STEPS if step.name in ("prefix", "layers")))
    monkeypatch.setattr("edge_cli.ladder.load_of_others", lambda: 0.0)


def test_steps_are_shown_plotted_and_written(call: Call, tmp_path: Path) -> None:
    for name, hours in (("ladder-killed", 100), ("ladder-running", 1)):
        folder = load_settings().paths.cache_dir / name
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - 3600 * hours,) * 2)
    model, plot, table = write_gguf(tmp_path / "tiny.gguf", n_ctx=8192), tmp_path / "ladder.svg", tmp_path / "ladder.md"
    for key, value in (("kv_type_k", "f32"), ("engine.prefill_with", "openvino")):  # of an earlier ladder
        set_in_file(load_settings().paths.config_file, key.split("."), value)
    done = call(
        "ladder", str(model), "--backend", "fake", "--work", "least", "--json", "--plot", str(plot), "--write", "same",
        "--student", str(model), "--markdown", str(table),
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["stopped"] == ""
    assert [rung["name"] for rung in found["rungs"]] == ["naive", "prefix", "layers"]
    naive, prefix, layers = found["rungs"]
    assert naive["chat"]["reused"] == 0 < prefix["chat"]["reused"]
    assert layers["kind"] == "lossy"
    assert layers["setup"]["path"] == str(model)
    assert "The workload is smaller than the full one (least)" in done.err
    assert plot.read_text().startswith("<svg")
    rows = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(found["rungs"])
    assert {row.count("|") for row in rows} == {11}
    settings = load_settings()
    assert (settings.backend, settings.kv.enabled, settings.threads) == ("fake", False, 1)
    assert settings.model == "smollm2-135m"  # fewer layers only if asked
    assert (settings.kv_type_k, settings.engine.prefill_with) == (None, None)
    assert "kv_type_k removed, engine.prefill_with removed" in done.err
    # Nothing is left of what it stored, nor of what a killed run did.
    assert [path.name for path in settings.paths.cache_dir.glob("ladder-*")] == ["ladder-running"]


def test_a_table_with_what_was_not_tried(call: Call, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", n_ctx=8192)
    done = call("ladder", str(model), "--backend", "fake", "--work", "least")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split()[:2] == ["step", "reply"]
    assert done.out.splitlines()[1].startswith("the naive way")
    assert "layers: not tried, no student was given (--student)" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--plot", "ladder.png"), 2, "is not an SVG file"),
        (("--plot", "nowhere/ladder.svg"), 1, "there is no folder nowhere"),
        (("--markdown", "nowhere/ladder.md"), 1, "there is no folder nowhere"),
        (("--backend", "nothing"), 2, "There is no backend nothing"),
        (("nowhere.gguf", "--backend", "nothing"), 2, "There is no backend nothing"),  # before a model is fetched
        (("--minutes", "0"), 2, "--minutes"),
        (("nowhere.gguf",), 3, "nowhere.gguf"),
    ],
)
def test_what_cannot_be(call: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    given = arguments if arguments[0].endswith(".gguf") else (str(model), *arguments)
    done = call("ladder", *given)
    assert (done.code, said in done.err) == (code, True), done.err
