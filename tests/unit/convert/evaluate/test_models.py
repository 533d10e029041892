"""The evaluation on real engines: tiny models of every format, in child processes and on a Ray cluster of two workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")

from edge.child import python_command
from edge.errors import BackendError, BackendUnavailableError, ModelFileError, UsageError
from edge_convert.evaluate import jobs
from edge_convert.evaluate.card import Card, read_card
from edge_convert.evaluate.evaluation import EvaluateOptions, _names, evaluate
from edge_convert.evaluate.logits import greedy, open_logits
from edge_convert.evaluate.measure import SpeedJob
from edge_convert.evaluate.passages import TextOptions
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from tests.unit.convert.support import convert

Make = Callable[[str], Path]
MakeOnnx = Callable[[str, str], Path]
LITTLE = TextOptions(n_prose=64, window=32, n_prompts=2, n_answer=6)


@pytest.fixture(scope="module")
def tiny_gguf(tiny_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama as GGUF: gguf-F32/CHECKPOINT-F32.gguf and gguf-Q8_0/CHECKPOINT-Q8_0.gguf."""
    out = tmp_path_factory.mktemp("gguf") / "out"
    options = GgufOptions(quantisations=("F32", "Q8_0"), use_imatrix=False)
    convert(tiny_checkpoint("llama"), out, Request(gguf=options, card=False))
    return out


def gguf(folder: Path, kind: str) -> Path:
    return next(folder.glob(f"*/*-{kind}.gguf"))


def nothing(text: str, done: float) -> None:
    """Progress that nobody watches."""


@pytest.mark.slow
def test_every_format_gives_the_checkpoints_logits(tiny_checkpoint: Make, tiny_onnx: MakeOnnx, tiny_gguf: Path) -> None:
    checkpoint = tiny_checkpoint("llama")
    tokens = [int(token) for token in np.random.default_rng(1).integers(3, 500, 40)]
    reference = open_logits(checkpoint, n_threads=1)
    expected = reference.logits(tokens)
    size = float(np.abs(expected).max())
    # llama.cpp keeps its KV in 16 bits, hence the tolerance
    for path in (checkpoint, tiny_onnx("llama", "fp32"), gguf(tiny_gguf, "F32")):
        model = open_logits(path, n_threads=1, is_safe=True)
        np.testing.assert_allclose(model.logits(tokens), expected, atol=5e-3 * size)
        np.testing.assert_allclose(model.start(tokens[:30]), expected[29], atol=5e-3 * size)
        np.testing.assert_allclose(model.step(tokens[30]), expected[30], atol=5e-3 * size)
        np.testing.assert_allclose(model.start(tokens[:8]), expected[7], atol=5e-3 * size)
        assert greedy(model, tokens[:20], 4) == greedy(reference, tokens[:20], 4)
        assert model.n_vocab == expected.shape[1]
        assert model.tokenise("Licensed under 2 terms.\n") == reference.tokenise("Licensed under 2 terms.\n")
        model.close()


def test_a_model_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelFileError):
        open_logits(tmp_path / "bad.gguf")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "genai_config.json").write_text(
        json.dumps({"model": {"vocab_size": 9, "decoder": {"filename": "model.onnx", "head_size": 8}}})
    )
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(BackendError, match="onnx cannot be loaded"):
        open_logits(tmp_path / "onnx")


@pytest.fixture(scope="module")
def local_card(tiny_onnx: MakeOnnx, tiny_gguf: Path) -> Card:
    """Three models in child processes."""
    models = [gguf(tiny_gguf, "F32"), tiny_onnx("llama", "int4")]
    options = EvaluateOptions(texts=LITTLE, n_rounds=2, n_prefill=20, n_decode=4, n_threads=1, gate="kl=0.001")
    reports: list[float] = []
    card = evaluate(models, tiny_onnx("llama", "fp32"), options, lambda text, done: reports.append(done))
    assert reports == sorted(reports)
    assert reports[-1] == 1.0
    return card


@pytest.mark.slow
def test_a_card_of_three_models(local_card: Card, tiny_onnx: MakeOnnx) -> None:
    reference, same, rounded = local_card.rows
    assert (reference.is_reference, reference.format, local_card.reference) == (True, "onnx", reference.name)
    assert (same.format, rounded.format) == ("gguf", "onnx")
    assert reference.quality.all.kl_mean == 0.0
    assert same.quality.all.kl_mean < 1e-4
    assert same.quality.all.top1 == 1.0
    assert same.quality.divergence == (None, None)
    assert rounded.quality.all.kl_mean > 0.01
    assert [failure.measure for failure in rounded.failures] == ["kl"]
    assert not same.failures
    assert not reference.failures
    assert rounded.size_bytes == sum(path.stat().st_size for path in tiny_onnx("llama", "int4").iterdir())
    for row in local_card.rows:
        assert row.splits_alike is True
        assert row.speed is not None
        assert row.speed.peak_bytes > 10_000_000
        assert min(row.speed.load_s, row.speed.prefill_tokens_per_s, row.speed.decode_tokens_per_s) > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac runs packages, and at full length")
def test_a_package_is_evaluated_over_the_beginning_of_the_texts(
    tiny_checkpoint: Make, tiny_onnx: MakeOnnx, tmp_path: Path
) -> None:
    pytest.importorskip("coremltools", reason="needs the extra [convert]")
    from tests.unit.convert.coreml.support import export_tiny

    package = export_tiny(tiny_checkpoint("llama"), tmp_path / "coreml-fp16", variant="fp16", context=256)
    texts = TextOptions(n_prose=64, window=32, n_prompts=3, n_answer=6, n_slow=24)
    options = EvaluateOptions(texts=texts, n_rounds=1, n_prefill=8, n_decode=2, n_threads=1)
    card = evaluate([package], tiny_onnx("llama", "fp32"), options, nothing)  # torch would be imported in each child
    reference, row = card.rows
    assert (row.name, row.format, row.is_part, reference.is_part) == ("coreml-fp16", "coreml", True, False)
    assert (row.quality.prose.n_tokens, len(row.quality.divergence)) == (11, 1)
    assert row.quality.all.n_tokens == 11 + 6 < reference.quality.all.n_tokens == 62 + 3 * 6
    assert row.quality.all.kl_mean < 1e-3 and row.quality.all.top1 == 1.0
    assert row.speed is None and reference.speed is not None


def test_models_are_told_apart_by_their_names(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "x/onnx-int4", "y/onnx-int4")]
    assert list(_names(paths)) == ["a", "x/onnx-int4", "y/onnx-int4"]
    packages = [tmp_path / name / "model.mlpackage" for name in ("coreml-gpu", "coreml-ane")]
    assert list(_names(packages)) == ["coreml-gpu", "coreml-ane"]
    with pytest.raises(UsageError, match="named twice"):
        _names([tmp_path / "a.gguf", tmp_path / "a.gguf"])


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        evaluate([], None, EvaluateOptions(), nothing)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="counted"):
        evaluate([tmp_path], None, EvaluateOptions(n_rounds=-1), nothing)


@pytest.mark.slow
def test_an_engine_that_crashes_is_tried_again_on_its_safe_path(
    tiny_onnx: MakeOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = tiny_onnx("llama", "fp32"), tmp_path / "seen"
    stand_in = "tests.unit.convert.evaluate.support:"
    monkeypatch.setattr(jobs, "python_command", lambda entry: python_command(f"{stand_in}crash_unless_safe", str(seen)))
    request = SpeedJob(path=str(model), n_threads=1, n_prefill=4, n_decode=2)
    reply = jobs.run_job(request)
    assert reply.speed is not None
    assert [json.loads(line)["is_safe"] for line in seen.read_text().splitlines()] == [False, True]

    monkeypatch.setattr(jobs, "python_command", lambda entry: python_command(f"{stand_in}crash"))
    with pytest.raises(BackendError, match="died of SIGSEGV"):
        jobs.run_job(request)


def test_a_job_ends_when_its_parent_is_gone(tiny_onnx: MakeOnnx) -> None:
    request = SpeedJob(path=str(tiny_onnx("llama", "fp32")), n_threads=1, n_prefill=4, n_decode=2)
    command = python_command("edge_convert.evaluate.child:main")
    child = subprocess.run(command, input=msgspec.json.encode(request) + b"\n", capture_output=True, check=False)
    assert (child.returncode, child.stdout) == (-signal.SIGKILL, b"")


# Ray replaces 127.0.0.1 by the machine's outer address unless it is told that clusters of several machines are not wanted.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster on this machine: a head that computes nothing and two workers with one CPU each."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster()
    try:
        for n_cpus in (0, 1, 1):
            for attempt in range(8):  # Ray waits for a node for 30 seconds, which a busy machine may not keep to
                try:
                    cluster.add_node(num_cpus=n_cpus, include_dashboard=False, **memory)
                    break
                except Exception:
                    if attempt == 7:
                        raise
        cluster.wait_for_nodes(timeout=300)
        yield cluster.address
    finally:
        cluster.shutdown()


_ON_RAY = """
import sys
from pathlib import Path
from edge_convert.evaluate.card import to_json
from edge_convert.evaluate.evaluation import EvaluateOptions, evaluate
from edge_convert.evaluate.passages import TextOptions
import ray

address, out, reference, *models = sys.argv[1:]
options = EvaluateOptions(
    texts=TextOptions(n_prose=64, window=32, n_prompts=2, n_answer=6),
    n_rounds=1, n_prefill=20, n_decode=4, n_threads=1, ray=address,
)
card = evaluate([Path(model) for model in models], Path(reference), options, lambda text, done: None)
assert not ray.is_initialized(), "the engine was not left"
Path(out).write_bytes(to_json(card))
"""


@pytest.mark.slow
def test_two_ray_workers_make_the_same_card(
    ray_address: str, local_card: Card, tiny_onnx: MakeOnnx, tiny_gguf: Path, tmp_path: Path
) -> None:
    paths = [tiny_onnx("llama", "fp32"), gguf(tiny_gguf, "F32"), tiny_onnx("llama", "int4")]
    out = tmp_path / "card.json"
    # In a process of its own: Ray's warnings and threads stay out of the tests.
    done = subprocess.run(
        [sys.executable, "-c", _ON_RAY, ray_address, str(out), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_LOOPBACK},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    card = read_card(out)
    for here, there in zip(local_card.rows, card.rows, strict=True):
        assert (there.name, there.tool, there.splits_alike) == (here.name, here.tool, here.splits_alike)
        assert there.quality.divergence == here.quality.divergence
        assert there.quality.all.kl_mean == pytest.approx(here.quality.all.kl_mean, rel=1e-3, abs=1e-7)
        assert there.speed is not None


def test_no_engine_at_that_address() -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    with pytest.raises(BackendUnavailableError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        jobs.RayJobs("127.0.0.1:1", 1)


def test_without_ray_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match="Ray is not installed"):
        jobs.RayJobs("auto", 1)


@pytest.mark.slow
def test_the_command_prints_the_card_and_fails_the_gate(
    tiny_onnx: MakeOnnx, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_cli.main import run

    models = [str(tiny_onnx("llama", "int4")), "--against", str(tiny_onnx("llama", "fp32"))]
    little = ["--tokens", "32", "--prompts", "1", "--rounds", "0", "--threads", "1"]
    page, text = tmp_path / "card.html", tmp_path / "card.md"
    ask = ["--limit", "1", "--tasks", "facts,instructions"]
    assert run(["eval", *models, *little, "--html", str(page), "--markdown", str(text), *ask]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["model", "llama-fp32", "llama-int4"] * 2
    assert "questions" in lines[3] and "loop" not in lines[3]
    assert [line.partition(": ")[0] for line in lines[6:]] == ["llama-fp32", "llama-int4"]
    assert lines[6].endswith(
        "Too little was asked to say what it is good for: it answers 0 of 1 short questions and follows 1 of 1 instructions."
    )
    assert "Compared with llama-fp32" in err
    assert "Computed by onnxruntime" in err and ": llama-fp32, llama-int4." in err
    assert page.read_text().startswith("<!doctype html>")
    assert text.read_text().startswith("# Quality of the converted models")

    assert run(["eval", *models, *little, "--gate", "kl=0.0001", "--json"]) == 5
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][1]["failures"][0]["measure"] == "kl"
    assert "The quality gate failed. llama-int4: kl is" in err

    shutil.copytree(tiny_onnx("llama", "int4"), tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").write_bytes(b"damaged")
    assert run(["eval", str(tmp_path / "copy"), *little]) == 1
    assert "copy cannot be loaded" in capsys.readouterr().err
    assert run(["eval", str(tmp_path / "nowhere")]) == 3
    assert run(["eval", str(page), "--gate", "quality=good"]) == 2
