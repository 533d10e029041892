"""`edge score`: prompts with choices in, scores out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def reviews(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"number {number}", "choices": ["good", "bad", f"number {number}"], "id": number} for number in range(n)]


def test_each_line_gets_its_scores_in_order(call: Any, fake_app: Any, tmp_path: Path) -> None:
    file = write(
        tmp_path / "in.jsonl",
        *reviews(7),
        "no JSON\n",
        {"prompt": "hi"},
        {"messages": [{"role": "user", "content": "yes"}], "choices": ["no", "yes"], "id": "m"},
        {"prompt": "x" * 3000, "choices": ["a", "b"]},
        {"prompt": "hi", "choices": ["a", "a"]},
        {"id": 12, "choices": ["a", "b"]},
    )
    result = call("score", str(file), app=fake_app(n_ctx=1024, n_seq=4, script=lambda text: text))
    assert result.code == 1
    assert "13 prompts" in result.err
    assert "5 failed" in result.err
    lines = read(result.out)
    assert [one["line"] for one in lines] == list(range(1, 14))
    assert [one["best"] for one in lines[:7]] == [f"number {number}" for number in range(7)]
    assert [one["id"] for one in lines if "id" in one] == [*range(7), "m", 12]
    assert lines[9]["best"] == "yes"
    assert [("error" in one) for one in lines[7:]] == [True, True, False, True, True, True]
    assert "no choices" in lines[8]["error"]["message"]
    assert "no prompt, messages, text or history" in lines[12]["error"]["message"]
    first = lines[0]
    assert first["ranked"][0] == "number 0"
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    choice = first["choices"][2]
    assert (choice["text"], choice["n_tokens"]) == ("number 0", 8)
    assert choice["logprob"] == pytest.approx(sum(one["logprob"] for one in choice["tokens"]))
    assert choice["mean"] == pytest.approx(choice["logprob"] / 8)


def test_texts_and_histories_are_lines_of_their_own_kind(call: Any, fake_app: Any, tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        assert prompt.startswith(("Good? Answer with one of: yes, no.", "Good? Answer with its name only."))
        return "no" if "Rats" in prompt else "Ubik" if "- Dune" in prompt else "yes"

    file = write(
        tmp_path / "in.jsonl",
        {"text": "Rats."},
        {"text": "Clean.", "choices": ["yes", "no"], "id": 5},
        {"history": ["Dune", "Solaris"], "items": ["Emma", "Ubik"]},
        {"history": ["Dune"], "items": []},
    )
    result = call("score", str(file), "-c", "yes", "-c", "no", "--task", "Good?", app=fake_app(n_ctx=2048, script=answer))
    lines = read(result.out)
    assert [line.get("best") for line in lines] == ["no", "yes", "Ubik", None]
    means = {one["text"]: one["mean"] for one in lines[2]["choices"]}
    assert lines[2]["ranked"] == sorted(means, key=lambda name: -means[name])
    assert "no choices" in lines[3]["error"]["message"] and result.code == 1


def test_out_goes_on_where_it_ends(call: Any, fake_app: Any, tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", *reviews(6)), tmp_path / "out.jsonl"
    app = fake_app(script=lambda text: text)
    assert call("score", str(file), "--out", str(out), app=app).code == 0
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:30])
    result = call("score", str(file), "--out", str(out), "--json", app=app)
    assert result.code == 0
    report = json.loads(result.out)
    assert (report["n"], report["n_done"], report["n_before"], report["n_failed"]) == (6, 6, 2, 0)
    assert [(one["line"], one["best"]) for one in read(out.read_text())] == [(one["line"], one["best"]) for one in read(whole)]
    again = call("score", str(file), "--out", str(out), app=fake_app())
    assert (again.code, "nothing left" in again.err) == (0, True)
    other = write(tmp_path / "other.jsonl", *reversed(reviews(6)))
    refused = call("score", str(other), "--out", str(out), app=app)
    assert refused.code == 2
    assert "--out" in refused.err


def test_ctrl_c_keeps_what_is_done(call: Any, fake_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_cli.jsonl import Journal

    append = Journal.append

    def interrupt(self: Journal, line: bytes) -> None:
        append(self, line)
        if len(self) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupt)
    file, out = write(tmp_path / "in.jsonl", *reviews(6)), tmp_path / "out.jsonl"
    result = call("score", str(file), "--out", str(out), app=fake_app(script=lambda text: text))
    assert result.code == 130
    assert "3 of 6" in result.err
    monkeypatch.undo()
    assert [one["line"] for one in read(out.read_text())] == [1, 2, 3]


def test_stdin_texts_and_choices_of_the_command_line(call: Any, fake_app: Any) -> None:
    data = b'{"prompt": "I say "}\n{"prompt": "You say ", "choices": ["x"]}\n'
    app = fake_app(script=lambda text: text)
    result = call("score", "-", "--text", "-c", "yes", "-c", "no", "--json", "--by", "mean", stdin=data, app=app)
    assert result.code == 0, result.err
    found = json.loads(result.out)["results"]
    assert [[choice["text"] for choice in one["choices"]] for one in found] == [["yes", "no"], ["x"]]
    assert {choice["end_logprob"] for one in found for choice in one["choices"]} == {None}


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read(call: Any, fake_app: Any, tmp_path: Path, name: str) -> None:
    result = call("score", str(tmp_path / name), app=fake_app())
    assert result.code == 2
    assert "cannot be read" in result.err
