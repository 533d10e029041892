"""Steps in processes of their own: the same results, the same errors, and they stop when they are asked."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.child import python_command
from edge.errors import BackendError, ModelFileError
from edge_convert import step_process
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.pipeline import Plan, Step, run
from edge_convert.plan import make_plan
from edge_convert.step_process import isolate

Make = Callable[[str], Path]
REQUEST = Request(gguf=GgufOptions(quantisations=("Q8_0",), use_imatrix=False), card=False)


def plan_of(source: Path, out: Path, request: Request = REQUEST) -> tuple[Plan, Input]:
    found = Input(kind="checkpoint", path=source, source=source.name)
    return make_plan(found, out, request), found


def test_results_are_those_of_one_process_and_libraries_stay_out_of_it(tiny_checkpoint: Make, tmp_path: Path) -> None:
    plan, found = plan_of(tiny_checkpoint("llama"), tmp_path / "here")
    (here,) = run(plan)
    script = f"""
import sys
from pathlib import Path
import msgspec
from edge_convert.step_process import isolate
from edge_convert.pipeline import run
from tests.unit.convert.test_step_process import plan_of
plan, found = plan_of(Path({str(found.path)!r}), Path({str(tmp_path / "there")!r}))
told = []
run(isolate(plan, found, __import__("tests.unit.convert.test_step_process", fromlist=["REQUEST"]).REQUEST), told.append)
assert "comparing tokens" in [progress.detail for progress in told]
print(sorted(name for name in ("torch", "transformers", "gguf") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    there = tmp_path / "there" / here.name
    files = sorted(path.name for path in here.iterdir())
    assert files == sorted(path.name for path in there.iterdir())
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in files)


def test_an_error_of_a_step_comes_through_as_what_it_is(tiny_checkpoint: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))
    (copy / "generation_config.json").write_text('{"eos_token_id": 99999}')
    plan, found = plan_of(copy, tmp_path / "out")
    with pytest.raises(ModelFileError, match="eos_token_id is 99999") as caught:
        run(isolate(plan, found, REQUEST))
    assert caught.value.hint == "Correct generation_config.json, or download it again."
    assert not plan.out.exists()


def test_what_a_library_cannot_read_is_no_bug_of_edge(tiny_checkpoint: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))
    described = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**described, "decoder": {"type": "Unheard"}}))
    plan, found = plan_of(copy, tmp_path / "out")
    with pytest.raises(ModelFileError, match=r"cannot be read: the value at line 1, column .* is of a wrong kind"):
        run(isolate(plan, found, REQUEST))


def test_weights_that_are_not_numbers_stop_every_format_at_once(tiny_checkpoint: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))
    content = (copy / "model.safetensors").read_bytes()
    for pattern in (b"\xff\xff\xff\x7f", b"\x00\x00\x80\xff"):  # a NaN, minus infinity
        (copy / "model.safetensors").write_bytes(content[:-4] + pattern)
        plan, _ = plan_of(copy, tmp_path / "out", Request(formats=("onnx",), card=False))
        with pytest.raises(ModelFileError, match="holds values that are not numbers"):
            run(plan)
        assert not (tmp_path / "out").exists()


def test_temporary_files_of_libraries_go_with_the_step(
    tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    request = Request(formats=("coreml",), coreml_variants=("fp16",), coreml_context=64, card=False)
    plan, found = plan_of(tiny_checkpoint("llama"), tmp_path / "out", request)
    run(isolate(plan, found, request))
    assert not list((tmp_path / "tmp").iterdir())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["coreml-fp16"]


def test_a_process_that_dies_is_told_with_what_it_said(
    tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, found = plan_of(tiny_checkpoint("llama"), tmp_path / "out")
    stub = tmp_path / "edge_convert"
    stub.mkdir()
    (stub / "__init__.py").write_text("")
    (stub / "step_process.py").write_text("import os, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos.abort()\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(BackendError, match=r"(?s)SIGABRT.*out of luck"):
        run(isolate(plan, found, REQUEST))


def test_a_step_stops_when_its_parent_is_gone(tiny_checkpoint: Make, tmp_path: Path) -> None:
    plan, found = plan_of(tiny_checkpoint("llama"), tmp_path / "out")
    plan.work.mkdir(parents=True)
    folder = plan.work / "gguf-base.tmp"
    folder.mkdir()
    task = step_process._Task(source=found, request=REQUEST, out=plan.out, step="gguf-base", folder=folder, scratch=folder)
    child = subprocess.Popen(
        python_command("edge_convert.step_process:main"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    said, _ = child.communicate(step_process._encode(task) + b"\n")  # and closes its stdin at once
    assert child.returncode in (130, -signal.SIGINT)
    assert b'"done"' not in said


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: importlib.import_module("tokenizers").Tokenizer.from_str("{"), ("ModelFileError", "tokenizers cannot use")),
        (lambda: importlib.import_module("safetensors.numpy").load(b"x" * 9), ("ModelFileError", "safetensors cannot use")),
        (lambda: json.loads("{"), (None, "JSONDecodeError")),
        (lambda: [][1], (None, "IndexError")),
    ],
)
def test_errors_of_libraries_are_about_the_model_and_others_bugs(
    work: Callable[[], object], expected: tuple[str | None, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw, in the child process."""
    source = Input(kind="checkpoint", path=tmp_path, source="x")
    task = step_process._Task(source=source, request=REQUEST, out=tmp_path, step="s", folder=tmp_path, scratch=tmp_path)
    step = Step(name="s", title="", work=lambda folder, folder_of, on_progress: work() and None)
    plan = Plan(title="t", out=tmp_path, digest="d" * 64, steps=(step,))
    sent: list[bytes] = []
    monkeypatch.setattr(step_process, "claim_stdout", lambda: sent.append)
    monkeypatch.setattr(step_process, "end_with_parent", lambda number: None)
    monkeypatch.setattr(step_process, "make_plan", lambda *_: plan)
    monkeypatch.setattr(step_process, "os", SimpleNamespace(environ={}, _exit=lambda code: None))
    monkeypatch.setattr(step_process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(step_process._encode(task) + b"\n")))
    monkeypatch.setattr(step_process.tempfile, "tempdir", None)
    step_process.main()
    (message,) = map(json.loads, sent)
    kind, text = expected
    assert message.get("error") == kind
    assert text in message["message" if kind else "crash"]
