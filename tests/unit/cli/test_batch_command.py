"""`edge batch`: requests in, answers out, whatever ends the process in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge_cli.app import App
from tests.unit.documents.conftest import concept_embedder

MAIN = "from edge_cli.main import main; main()"
WAIT_S = 120.0


def ask(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def said(answer: dict[str, Any]) -> str:
    text: str = answer["response"]["body"]["choices"][0]["message"]["content"]
    return text


@pytest.fixture
def app() -> Callable[..., App]:
    def make(asked: list[str] | None = None, **options: Any) -> App:
        def script(text: str) -> str:
            if asked is not None:
                asked.append(text)
            return f"You said {text}"

        def load(name: str, *, settings: Any, on_progress: Any) -> Assistant:
            assert settings.kv.exact is (settings.engine.parallel == 1)
            return Assistant(
                FakeBackend(script=script, n_ctx=512, **options), window=settings.window, sampling=settings.sampling
            )

        return App(load=load, plan=lambda *_, **__: None)  # type: ignore[arg-type,return-value]

    return make


def test_answers_are_in_order_and_failures_apart(call: Any, app: Any, tmp_path: Path) -> None:
    file = write(
        tmp_path / "in.jsonl",
        ask("a", "one"),
        "no JSON\n",
        {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 2}},
        ask("c", "two", temperature=-1),
        {"custom_id": "d", "url": "/v1/responses", "body": {"input": "three"}},
        ask("a", "again"),
        {"custom_id": "e", "url": "/v1/files", "body": {}},
        ask("f", "four", stream=True),
        ask("g", "five", model="gpt-4o"),
        "\n",
        ask("h", "x" * 2000),
    )
    out = tmp_path / "out.jsonl"
    result = call("batch", str(file), "--out", str(out), app=app())
    assert result.code == 1
    assert result.out == ""
    assert "3 answers" in result.err
    assert "7 failed" in result.err
    assert "-m MODEL" in result.err
    answers = read(out)
    assert [one["custom_id"] for one in answers] == ["a", "b", "d"]
    assert said(answers[0]) == "You said one"
    assert answers[2]["response"]["body"]["output"][0]["content"][0]["text"] == "You said three"
    assert all(one["response"]["status_code"] == 200 and one["error"] is None for one in answers)
    failures = read(tmp_path / "out.errors.jsonl")
    refused = {one["error"]["line"]: one["error"]["code"] for one in failures if one["error"]}
    assert refused == {2: "invalid_request", 6: "duplicate_custom_id", 7: "invalid_url", 8: "invalid_request"}
    answered = {one["custom_id"]: one["response"]["status_code"] for one in failures if one["response"]}
    assert answered == {"c": 400, "g": 404, "h": 400}
    assert len(failures) == 7


def test_vectors_are_made_by_a_model_for_embeddings(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **_: Any) -> Assistant:
        raise AssertionError("no reply is asked for")

    asked: list[str] = []

    def embedder(name: str | None = None, **_: Any) -> Any:
        asked.append(str(name))
        return concept_embedder(str(name))

    monkeypatch.setattr("edge_serve.embedding.DEFAULT_MODEL", "default")
    monkeypatch.setattr("edge_serve.batch.DEFAULT_MODEL", "")
    one = {"custom_id": "1", "url": "/v1/embeddings", "body": {"input": ["car", "automobile", "teapot"]}}
    file, out = write(tmp_path / "in.jsonl", one), tmp_path / "out.jsonl"
    app = App(load=load, embedder=embedder, plan=lambda *_, **__: None)  # type: ignore[arg-type,return-value]
    result = call("batch", str(file), "--out", str(out), "-m", "smollm2-135m", app=app)
    assert (result.code, asked) == (0, ["default"])
    (answer,) = read(out)
    car, automobile, teapot = (row["embedding"] for row in answer["response"]["body"]["data"])
    assert car == automobile != teapot
    assert "tokens/s" not in result.err


def test_what_was_torn_is_dropped_and_what_is_done_is_not_asked_again(call: Any, app: Any, tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", *(ask(str(n), f"number {n}") for n in range(6))), tmp_path / "out.jsonl"
    assert call("batch", str(file), "--out", str(out), app=app()).code == 0
    whole = read(out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[3] + lines[0] + lines[5][:40])  # as they came, and the process was killed in the middle of one
    asked: list[str] = []
    result = call("batch", str(file), "--out", str(out), "--json", app=app(asked))
    assert result.code == 0
    assert sorted(asked) == ["number 1", "number 2", "number 4", "number 5"]
    assert [(one["id"], said(one)) for one in read(out)] == [(one["id"], said(one)) for one in whole]
    report = json.loads(result.out)
    assert (report["n"], report["n_answered"], report["n_before"], report["n_failed"]) == (6, 6, 2, 0)
    assert report["is_complete"] is True
    assert report["errors"] is None
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.jsonl"]


def test_failures_are_tried_again(call: Any, app: Any, tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", ask("a", "x" * 600), ask("b", "hi")), tmp_path / "out.jsonl"
    assert call("batch", str(file), "--out", str(out), app=app()).code == 1
    assert [one["custom_id"] for one in read(out)] == ["b"]

    def load(name: str, *, settings: Any, on_progress: Any) -> Assistant:
        return Assistant(FakeBackend(n_ctx=4096), window=settings.window)

    assert call("batch", str(file), "--out", str(out), app=App(load=load, plan=lambda *_, **__: None)).code == 0
    assert [one["custom_id"] for one in read(out)] == ["a", "b"]
    assert not (tmp_path / "out.errors.jsonl").exists()


@pytest.mark.parametrize("changed", ["another question", "fewer requests", "another model", "another file"])
def test_answers_to_other_requests_are_not_taken_for_these(call: Any, app: Any, tmp_path: Path, changed: str) -> None:
    file, out = write(tmp_path / "in.jsonl", ask("a", "one"), ask("b", "two")), tmp_path / "out.jsonl"
    assert call("batch", str(file), "--out", str(out), app=app()).code == 0
    more: tuple[str, ...] = ()
    if changed == "another question":
        write(file, ask("a", "one"), ask("b", "three"))
    elif changed == "fewer requests":
        write(file, ask("a", "one"))
    elif changed == "another model":
        more = ("-m", "gemma3-270m")
    else:
        write(out, {"x": 1})
    before = out.read_bytes()
    result = call("batch", str(file), "--out", str(out), *more, app=app())
    assert result.code == 2
    assert "--out" in result.err
    assert out.read_bytes() == before


def test_a_model_that_cannot_be_loaded_ends_it(call: Any, tmp_path: Path) -> None:
    def load(name: str, **_: Any) -> Assistant:
        raise edge.errors.ModelTooLargeError("It is too large.", "Choose a smaller one.")

    file, out = write(tmp_path / "in.jsonl", ask("a", "one")), tmp_path / "out.jsonl"
    result = call("batch", str(file), "--out", str(out), app=App(load=load, plan=lambda *_, **__: None))
    assert result.code != 0
    assert "It is too large." in result.err
    assert read(out) == []


def test_side_by_side_answers_end_up_in_order(call: Any, app: Any, tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", *(ask(str(n), "y" * (90 - 7 * n)) for n in range(12))), tmp_path / "out.jsonl"
    result = call("batch", str(file), "--out", str(out), "--parallel", "4", app=app(n_seq=4))
    assert result.code == 0, result.err
    assert [one["custom_id"] for one in read(out)] == [str(n) for n in range(12)]
    assert [said(one) for one in read(out)] == [f"You said {'y' * (90 - 7 * n)}" for n in range(12)]


def test_two_processes_do_not_write_one_file(call: Any, app: Any, tmp_path: Path) -> None:
    from edge_cli.jsonl import Journal

    file, out = write(tmp_path / "in.jsonl", ask("a", "one")), tmp_path / "out.jsonl"
    with Journal(out):
        result = call("batch", str(file), "--out", str(out), app=app())
    assert result.code == 2
    assert "Another process" in result.err


@pytest.mark.model
def test_after_kill_9_the_answers_are_those_of_single_runs(model_path: Path, tmp_path: Path) -> None:
    question = "Here is a list of harbours, with notes on each of them and on the ships that call there. " * 3
    requests = [ask(str(n), f"{question} What is number {n}?", max_tokens=12, temperature=0) for n in range(6)]
    file, out = write(tmp_path / "in.jsonl", *requests), tmp_path / "out.jsonl"
    command = [sys.executable, "-c", MAIN, "batch", str(file), "--out", str(out), "-m", str(model_path), "--threads", "1"]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE)
    until = time.monotonic() + WAIT_S
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        assert killed.poll() is None, killed.stderr.read() if killed.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    n_before = out.read_bytes().count(b"\n")
    assert 2 <= n_before < 6
    rest = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(rest.stdout)["n_before"] == n_before
    answers = read(out)
    assert [one["custom_id"] for one in answers] == [str(n) for n in range(6)]
    settings = edge.load_settings({"kv.exact": True, "kv.enabled": False})
    for number in (0, n_before, 5):
        with edge.load(str(model_path), threads=1, settings=settings) as alone:
            single = alone.generate(requests[number]["body"]["messages"], max_tokens=12, temperature=0).wait()
        assert said(answers[number]) == single
