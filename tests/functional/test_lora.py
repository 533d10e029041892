"""Adapters on the real model: what it computes with each, side by side, after a restart, and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edge
from edge.adapters import Adapter, Mix
from edge.backends.base import Backend, open_backend
from edge.config import load_settings
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.formats.gguf import read_header
from edge.formats.gguf_adapter import read_adapter
from edge.plan import PlanRequest, make_plan
from edge_cli.main import cli
from tests.adapters import write_adapter
from tests.unit.convert.reference import logits_of_gguf

pytestmark = pytest.mark.model
A, B, BOTH = ((0, 1.0),), ((1, 0.5),), ((0, 1.0), (1, 0.5))
QUESTION = "In one sentence: why do ships float on water, and why do stones sink to the ground of the sea?"


@pytest.fixture(scope="module")
def files(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    targets = ("attn_q", "attn_output", "ffn_down")
    return [write_adapter(folder / f"{name}.gguf", model_path, seed=ord(name), size=0.1, targets=targets) for name in "ab"]


@pytest.fixture(scope="module")
def backend(model_path: Path, files: list[Path]) -> Iterator[Backend]:
    header = read_header(model_path)
    adapters: tuple[Adapter, ...] = tuple(read_adapter(path, header, name=path.stem, scale=1.0) for path in files)
    plan = make_plan(probe(), open_artifact(model_path), PlanRequest(context=512, n_seq=4, threads=1))
    with open_backend(replace(plan, adapters=adapters, use_extra_buffers=False)) as opened:
        yield opened


def logits(backend: Backend, tokens: list[int], mix: Mix, seq_id: int = 0) -> np.ndarray:
    backend.set_adapters(mix)
    backend.rewind(seq_id, 0)
    backend.prefill(seq_id, tokens)
    return backend.logits(seq_id)


def test_each_mix_computes_what_llamacpp_computes_by_itself(backend: Backend, model_path: Path, files: list[Path]) -> None:
    tokens = backend.tokenizer.tokenize(QUESTION)
    plain = logits(backend, tokens, ())
    for mix in (A, B, BOTH, ((1, -0.5),)):
        found = logits(backend, tokens, mix)
        expected = logits_of_gguf(model_path, tokens, 64, {files[number]: scale for number, scale in mix})[-1]
        effect = np.abs(expected - plain).mean()
        assert effect > 0.5
        # Keys and values of 16 bits, and other kernels: it is the same model, not the same bits.
        assert np.abs(found - expected).mean() < 0.2 * effect, mix
    np.testing.assert_array_equal(logits(backend, tokens, ()), plain, "the model itself is as before, to the last bit")


def test_sequences_keep_theirs_while_passes_alternate(backend: Backend) -> None:
    tokens = backend.tokenizer.tokenize(QUESTION)
    mixes = ((), A, B)

    def go_on(seq_id: int, mix: Mix) -> None:
        backend.set_adapters(mix)
        backend.decode([(seq_id, 100)])

    alone = []
    for mix in mixes:
        logits(backend, tokens, mix)
        for _ in range(3):
            go_on(0, mix)
        alone.append(backend.logits(0))
    for seq_id, mix in enumerate(mixes):
        logits(backend, tokens, mix, seq_id)
    for _ in range(3):
        for seq_id, mix in enumerate(mixes):
            go_on(seq_id, mix)
    for seq_id, expected in enumerate(alone):
        np.testing.assert_allclose(backend.logits(seq_id), expected, atol=0.05)
        backend.rewind(seq_id, 0)
    assert np.abs(alone[0] - alone[1]).max() > 1 and np.abs(alone[1] - alone[2]).max() > 1


def test_a_resized_window_keeps_the_adapters(backend: Backend) -> None:
    tokens = backend.tokenizer.tokenize(QUESTION)
    expected = logits(backend, tokens, A)
    backend.rewind(0, 0)
    backend.resize(768)
    backend.prefill(0, tokens)
    np.testing.assert_allclose(backend.logits(0), expected, atol=0.05)
    backend.rewind(0, 0)
    backend.resize(512)


def test_conversations_with_adapters_go_on_after_a_restart(model_path: Path, files: list[Path]) -> None:
    settings = load_settings({"model": str(model_path), "context": 1024, "engine.lora": [str(files[0]), f"{files[1]}:0"]})
    found: dict[str, list[tuple[str, int]]] = {}
    for _ in range(2):
        with edge.load(settings=settings) as ai:
            assert ai.lora == {"a": 1.0}
            replies = {
                str(lora): ai.generate(QUESTION, temperature=0, max_tokens=4, lora=lora)  # side by side
                for lora in (None, {}, {"b": 1.0})
            }
            for name, reply in replies.items():
                found.setdefault(name, []).append((reply.wait(), reply.usage.n_restored))
            ai.flush_cache()
    assert len({answers[0][0] for answers in found.values()}) == 3, "three different models, as it were"
    for (first, n_first), (again, n_again) in found.values():
        assert (first, n_first) == (again, 0)
        assert n_again > 20, "what was computed with these adapters, and with no others"


def test_the_command_line(model_path: Path, files: list[Path], tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli, ["run", "-m", str(model_path), *arguments])
        return result.exit_code, result.stdout, result.stderr

    code, out, _ = run("--lora", f"{files[0]}:0.5", "--lora", str(files[1]), "--json", "-n", "3", "hi")
    result = json.loads(out)
    assert code == 0
    assert result["lora"] == {"a": 0.5, "b": 1.0}
    assert [adapter["name"] for adapter in result["plan"]["adapters"]] == ["a", "b"]
    code, out, err = run("--lora", f"{files[0]}:0.5", "--estimate-only", "--explain")
    assert code == 0 and "adapters" in out and "a at 0.5" in err
