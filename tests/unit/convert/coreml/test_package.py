"""Damaged packages, verification, and joining functions, with coremltools' own joining as the oracle."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

from edge.errors import BackendError, BackendUnavailableError, ModelFileError, UsageError
from edge.formats.coreml import METADATA_KEY, Golden, TopLogits, find_files, read_info
from edge_cli.convert_verify import verify_result
from edge_cli.main import run
from edge_convert.coreml import export
from edge_convert.coreml import verify as verify_module
from edge_convert.coreml.mil import MilModel
from edge_convert.coreml.normalise import normalise_package
from edge_convert.coreml.program import Package, read_spec
from edge_convert.coreml.verify import verify
from edge_convert.manifest import digest_file, write_manifest
from tests.unit.convert.coreml.support import divergence, export_tiny, info_of, log_softmax, open_runner
from tests.unit.convert.support import make_manifest

Make = Callable[[str], Path]
SUPPORT = "tests.unit.convert.coreml.support"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Make) -> Path:
    """A package that tests copy before they damage it."""
    return export_tiny(tiny_checkpoint("llama"), tmp_path_factory.mktemp("package"), variant="gpu")


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    """A copy of the package, to be damaged."""
    return shutil.copytree(original, tmp_path / "copy.mlpackage")


def _weights(package: Path) -> Path:
    return find_files(package)[1]


def _fed(golden: Golden) -> list[list[int]]:
    return [golden.prompt, *([token] for token in golden.continuation[:-1])]


def test_verify_finds_a_good_package_good(original: Path) -> None:
    report = verify(original, engine="evaluator")
    assert report.is_good and report.divergence < 1e-4
    assert report.n_positions == 8 and report.compute_units is None
    golden, runner = info_of(original).golden, open_runner(original)
    expected = [top.divergence(runner.feed(fed)) for top, fed in zip(golden.source, _fed(golden), strict=True)]
    assert report.source_divergence == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_verify_says_what_it_found(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_result(original.parent, None, as_json=False) == 0, "the folder around a package will do"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "variant        gpu: 14 int4 in blocks, 1 int8 per row"
    assert lines[1] == "files          not compared: there is no manifest.json beside the package"
    assert "edge's evaluator, since this is not a Mac" in lines[2] or "Core ML on ALL" in lines[2]
    assert "to the export  KL 0.0000" in lines[-3] and "8 places in a text of 87 tokens" in lines[-3]
    assert lines[-1] == "The results are the same as at the export."
    assert verify_result(original, "ALL", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["encodings"] == {"int4 in blocks": 14, "int8 per row": 1}


def test_verify_compares_every_file_with_the_manifest(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [path for path in sorted(package.rglob("*")) if path.is_file()]
    entries = tuple(digest_file(path, name=path.relative_to(package.parent).as_posix()) for path in files)
    write_manifest(package.parent / "manifest.json", make_manifest(format="coreml", files=entries))
    assert verify(package, engine="evaluator").n_files == len(files) == 3
    for path in files:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert run(["convert", "verify", str(package)]) == 1
        said = capsys.readouterr().err
        assert f"{path} has changed since it was made: it has another SHA-256" in said
        path.write_bytes(before)
    path.write_bytes(before + b" ")
    with pytest.raises(ModelFileError, match="another size"):
        verify(package, engine="evaluator")
    path.unlink()
    with pytest.raises(ModelFileError, match=r"is missing; manifest\.json lists it"):
        verify(package, engine="evaluator")
    write_manifest(package.parent / "manifest.json", make_manifest(format="coreml"))
    with pytest.raises(ModelFileError, match=r"lists no file of copy\.mlpackage"):
        verify(package, engine="evaluator")


def test_verify_finds_changed_weights(package: Path) -> None:
    path = _weights(package)
    raw = bytearray(path.read_bytes())
    half = len(raw) // 2
    raw[half : half + 4096] = bytes(
        byte ^ 0x77 if index % 64 > 40 else byte for index, byte in enumerate(raw[half : half + 4096])
    )
    path.write_bytes(bytes(raw))
    try:
        assert not verify(package, engine="evaluator").is_good
    except ModelFileError:
        pass  # the damage hit a record's description, which is as good


def _cut(package: Path) -> None:
    path = _weights(package)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _unmark(package: Path) -> None:
    raw = bytearray(_weights(package).read_bytes())
    raw[64:68] = b"\0\0\0\0"
    _weights(package).write_bytes(bytes(raw))


def _garble(package: Path) -> None:
    path = find_files(package)[0]
    path.write_bytes(b"\xff" * 100 + path.read_bytes()[100:])


def _point_outside(package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../../etc/hostname"
    (package / "Manifest.json").write_text(json.dumps(manifest))


def _lie_about_a_shape(package: Path) -> None:
    path, _ = find_files(package)
    spec = read_spec(path)
    for operation in spec.mlProgram.functions["decode"].block_specializations["CoreML8"].operations:
        if operation.type == "softmax":
            operation.outputs[0].type.tensorType.dimensions[0].constant.size += 1
    path.write_bytes(spec.SerializeToString())


def _use_an_unknown_operation(package: Path) -> None:
    path, _ = find_files(package)
    spec = read_spec(path)
    for operation in spec.mlProgram.functions["decode"].block_specializations["CoreML8"].operations:
        if operation.type == "softmax":
            operation.type = "topk"
    path.write_bytes(spec.SerializeToString())


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda package: (package / "Manifest.json").unlink(), "not a Core ML package"),
    "manifest is no JSON": (lambda package: (package / "Manifest.json").write_text("{"), "damaged"),
    "manifest points outside": (_point_outside, "does not hold"),
    "no model": (lambda package: find_files(package)[0].unlink(), "does not hold"),
    "model garbled": (_garble, "damaged|no ML program"),
    "no weights": (lambda package: _weights(package).unlink(), "cannot be opened"),
    "weights cut": (_cut, "damaged"),
    "record without mark": (_unmark, "no mark"),
    "a false shape": (_lie_about_a_shape, "declared"),
    "an unknown operation": (_use_an_unknown_operation, "topk"),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_a_damaged_package_is_a_clear_error(name: str, package: Path) -> None:
    damage, message = DAMAGES[name]
    damage(package)
    with pytest.raises(ModelFileError, match=message) as caught:
        verify(package, engine="evaluator")
    assert caught.value.hint


def test_a_package_of_others_is_named_as_such(package: Path) -> None:
    normalise_package(package, {METADATA_KEY: ""})
    with pytest.raises(ModelFileError, match="damaged"):
        verify(package, engine="evaluator")
    with pytest.raises(ModelFileError, match="not made by"):
        read_info({}, "some.mlpackage")
    with pytest.raises(ModelFileError, match="no function 'main'"):
        MilModel(package, function_name="main")


def test_real_prediction_needs_a_mac(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module.platform, "system", lambda: "Linux")
    with pytest.raises(BackendUnavailableError):
        verify(original, engine="coreml")
    with pytest.raises(UsageError):
        verify(original, engine="coreml", compute_units="TPU")  # type: ignore[arg-type]


def test_a_crash_of_core_ml_stays_in_its_child(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(verify_module, "_CHILD", f"{SUPPORT}:crash")
    with pytest.raises(BackendError, match=r"Core ML failed on model\.mlpackage \(ALL\): its process died of SIGABRT"):
        verify(original)
    monkeypatch.setattr(verify_module, "_CHILD", f"{SUPPORT}:refuse")
    with pytest.raises(BackendError, match=r"ended with code 1 \(unsupported operation\)"):
        verify(original)
    monkeypatch.setattr(verify_module, "_CHILD", f"{SUPPORT}:hang")
    with pytest.raises(BackendError, match="did not finish"):
        verify(original, timeout_s=0.5)


def test_the_mac_path_with_the_evaluator_in_core_mls_place(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but Core ML itself: the child, the prediction interface, the report that comes back."""
    monkeypatch.setattr(verify_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(verify_module, "_CHILD", f"{SUPPORT}:predict_with_the_evaluator")
    report = verify(original, compute_units="CPU_AND_NE")
    assert report.engine == "coreml" and report.compute_units == "CPU_AND_NE" and report.is_good
    assert report.placement == {"MLCPUComputeDevice": 1.0}


def test_joining_is_what_coremltools_does(tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import coremltools as ct

    kept: dict[str, Path] = {}
    join = export.join_functions

    def keep(parts: dict[str, Path], joined: Path) -> None:
        kept.update({name: Path(shutil.copytree(path, tmp_path / f"{name}.mlpackage")) for name, path in parts.items()})
        join(parts, joined)

    monkeypatch.setattr(export, "join_functions", keep)
    ours = export_tiny(tiny_checkpoint("qwen2"), tmp_path, variant="gpu")
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, path in kept.items():
        descriptor.add_function(str(path), "main", name)
    descriptor.default_function_name = "decode"
    theirs = tmp_path / "theirs.mlpackage"
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.utils.save_multifunction(descriptor, str(theirs))
    specs = [read_spec(find_files(path)[0]) for path in (ours, theirs)]
    assert specs[0].description.defaultFunctionName == specs[1].description.defaultFunctionName
    functions = [sorted(spec.description.functions, key=lambda function: function.name) for spec in specs]
    assert functions[0] == functions[1]
    assert specs[0].specificationVersion == specs[1].specificationVersion
    sizes = [find_files(path)[1].stat().st_size for path in (ours, theirs)]
    assert sizes[0] <= sizes[1] * 1.01  # nothing is stored twice that coremltools stores once
    for name in ("decode", "prefill"):
        steps = [[step.operation for step in Package(path).function(name).steps] for path in (ours, theirs)]
        assert steps[0] == steps[1]


def test_top_logits_are_a_good_measure_of_divergence() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=1000) * 3
    other = logits + rng.normal(size=1000) * 0.3
    assert TopLogits.of(logits).divergence(other) == pytest.approx(divergence(logits, other), rel=0.2)
    assert TopLogits.of(logits).divergence(logits) < 1e-6
    assert TopLogits.of(logits).divergence(np.where(np.arange(1000) == 3, np.nan, logits)) == 100.0
    assert TopLogits.of(logits).tokens[0] == int(logits.argmax())
    assert TopLogits.of(logits).log_probabilities[0] == pytest.approx(float(log_softmax(logits).max()), abs=1e-5)


def test_the_child_process_prints_a_report_that_is_read_back(original: Path) -> None:
    report = verify(original, engine="evaluator")
    done = subprocess.CompletedProcess([], 0, b"noise\n" + verify_module.msgspec.json.encode(report), b"")
    assert verify_module.msgspec.json.decode(done.stdout.splitlines()[-1], type=verify_module.VerifyReport) == report
