"""Replies of one tiny model in three formats: edge's engines give those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")

from edge_convert.evaluate.tasks.answering import answer
from edge_convert.evaluate.tasks.asks import AnswerOptions, Ask
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from tests.unit.convert.support import convert

Make = Callable[[str], Path]
ASKS = [Ask(messages=(("system", "Be brief."), ("user", f"What is {n} plus {n}?")), max_tokens=12) for n in range(1, 5)]


def replies(model: Path, n_parallel: int) -> list[str]:
    found = dict(answer(model, ASKS, AnswerOptions(n_parallel=n_parallel, n_threads=1)))
    return [found[number] for number in range(len(ASKS))]


@pytest.mark.slow
def test_engines_reply_as_transformers_does(
    tiny_checkpoint: Make, tiny_onnx: Callable[[str, str], Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint("llama")
    expected = replies(checkpoint, 4)
    assert replies(checkpoint, 1) == expected  # left padding changes nothing
    assert len(set(expected)) > 1
    convert(checkpoint, tmp_path, Request(gguf=GgufOptions(quantisations=("F32",), use_imatrix=False), card=False))
    assert replies(next(tmp_path.glob("*/*.gguf")), 1) == expected
    assert replies(tiny_onnx("llama", "fp32"), 1) == expected


def test_options_that_need_the_tasks_and_mistakes_are_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_cli.main import run

    model = str(tmp_path / "none.gguf")
    assert run(["eval", model, "--minutes", "1"]) == 2
    assert "--minutes needs --tasks" in capsys.readouterr().err
    assert run(["eval", "--tasks", model]) == 2
    assert run(["eval", model, "--tasks", "fact"]) == 2
    assert "'fact' is not a task" in capsys.readouterr().err
