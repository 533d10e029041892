"""Names of the results of a conversion in the user's catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.catalog import load_catalog, resolve_all
from edge.config import load_settings
from edge.errors import UsageError
from edge_cli.app import App
from edge_cli.convert_names import choose_name, enter, say_names
from tests.tiny_onnx import write_onnx
from tests.unit.bench.fakes import write_gguf

PLAIN: dict[str, Any] = dict.fromkeys(("name", "lora", "keep_layers", "keep_ffn", "keep_vocab", "recipe"))
PLAIN["frontier"] = False


@pytest.mark.parametrize(
    ("source", "options", "name"),
    [
        ("smollm2-135m", {}, "smollm2-135m"),
        ("SmolLM2-135M", {}, "smollm2-135m"),
        ("smollm2-135m", {"lora": "x"}, ""),
        ("smollm2-135m", {"keep_layers": 15}, ""),
        ("smollm2-135m", {"frontier": True}, ""),
        ("smollm2-135m", {"recipe": "x", "name": "student"}, "student"),
        ("/x/m.gguf", {}, ""),
        ("hf:a/b", {"name": "smollm2-135m"}, "smollm2-135m"),
    ],
)
def test_the_name_of_a_source(source: str, options: dict[str, Any], name: str) -> None:
    assert choose_name(App(), source, {**PLAIN, **options}) == name


@pytest.mark.parametrize("options", [{"name": "Two Words"}, {"name": ""}, {"name": "smollm2-135m", "lora": "x"}])
def test_names_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        choose_name(App(), "smollm2-135m", {**PLAIN, **options})


def test_only_a_format_that_was_not_published_is_added_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gguf-Q2_K").mkdir()
    copy = write_gguf(tmp_path / "gguf-Q2_K" / "tiny.gguf")
    made = [Path("gguf-Q2_K"), write_onnx(Path("onnx-int4"), kind="int4"), Path("card")]
    named = enter(App(), "smollm2-135m", made, is_asked=False)
    assert named == {"onnx-int4": "onnx int4"}
    say_names("smollm2-135m", named)
    assert "edge run -m smollm2-135m --backend onnx" in capsys.readouterr().err
    settings = load_settings()
    [artifact] = resolve_all("smollm2-135m", settings=settings, download=False)
    assert (artifact.path, artifact.name) == (tmp_path / "onnx-int4", "smollm2-135m"), "wherever it is run from"
    enter(App(), "smollm2-135m", made, is_asked=True)
    assert [each.path for each in resolve_all("smollm2-135m", settings=settings)] == [copy, tmp_path / "onnx-int4"]
    # The second time the same places are the same lines.
    enter(App(), "smollm2-135m", made, is_asked=True)
    assert len(load_catalog(settings)["smollm2-135m"].artifacts) == 3
    assert enter(App(), "", made, is_asked=False) == {}
