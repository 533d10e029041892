"""Core ML in the plan of a conversion: wrong options are said before anything is done, and what decided is written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

from edge_cli.main import run
from edge_convert.coreml import export
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.plan import make_plan
from tests.unit.convert.support import read_manifest

Make = Callable[[str], Path]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--variants", "gpu,npu", "--context", "64"), "There is no variant npu of Core ML"),
        (("--variants", "", "--context", "64"), "No variant of Core ML is named"),
        (("--bits", "8", "--context", "64"), "Core ML has no 8-bit weights"),
        (("--context", "100"), "A context of 100 tokens cannot be laid out"),
        ((), "this model knows positions up to 512"),
        (("--context", "64", "--no-imatrix", "--calibration", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    options: tuple[str, ...], said: str, tiny_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(tiny_checkpoint("llama")), "--to", "gguf,coreml", "--out", str(tmp_path / "out")]
    assert run([*command, "--dry-run", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_calibration_text_decides_and_is_written_down(
    tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(checkpoint: Path, out: Path, *_: object) -> list[Path]:
        (out / "model.mlpackage").write_text("a package")
        return [out / "model.mlpackage"]

    monkeypatch.setattr(export, "export_coreml", build)
    folder = tiny_checkpoint("llama")
    source = Input(kind="checkpoint", path=folder, source="llama")
    digests, recipes = set(), []
    for number, text in enumerate(("one text", "another text", "another text")):
        path = tmp_path / f"{number}.txt"
        path.write_text(text)
        options = GgufOptions(quantisations=(), use_imatrix=False, calibration=path)
        request = Request(formats=("coreml",), gguf=options, coreml_context=64, card=False)
        plan = make_plan(source, tmp_path / str(number), request)
        digests.add(plan.digest)
        for step in plan.steps:
            (plan.work / step.name).mkdir(parents=True)
            step.work(plan.work / step.name, lambda name, work=plan.work: work / name, lambda *_: None)  # type: ignore[misc]
        recipes.append([read_manifest(plan.work / f"coreml-{name}/manifest.json").recipe for name in ("gpu", "ane")])
    assert len(digests) == 2
    assert recipes[0] != recipes[1] == recipes[2]
    assert [recipe["calibration"][:9] for recipe in recipes[0]] == ["the text "] * 2


def test_verify_says_which_package_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "verify"]) == 2
    assert "Which result? edge convert verify PATH" in capsys.readouterr().err
    assert run(["convert", "verify", str(tmp_path / "none.mlpackage")]) == 3
    assert "There is no file or folder" in capsys.readouterr().err
