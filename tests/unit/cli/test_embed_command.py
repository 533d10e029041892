"""`edge embed`: what it reads, writes and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_cli.app import App
from tests.tiny_embedding import load_hashed
from tests.unit.cli.conftest import Call

APP = App(embedder=load_hashed)


def test_a_line_for_each_text(call: Call) -> None:
    found = call("embed", "one", "two three", app=APP)
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [(row["index"], row["tokens"], len(row["embedding"])) for row in rows] == [(0, 3, 8), (1, 4, 8)]
    np.testing.assert_allclose(rows[1]["embedding"], load_hashed().embed("two three").vectors[0], atol=1e-6)


def test_lines_of_stdin_and_one_object(call: Call) -> None:
    found = call("embed", "--json", "--dimensions", "4", "-m", "mine", stdin=b"one\n\ntwo\r\n", app=APP)
    body = json.loads(found.out)
    assert (body["model"], body["dimensions"], body["pooling"]) == ("mine", 4, "mean")
    assert [row["index"] for row in body["embeddings"]] == [0, 1]
    assert call("embed", "-", stdin=b"x" * 4 + b"\n", app=APP).code == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["embed"], None, 2, "stdin is a terminal"),
        (["embed"], b"\n \n", 2, "stdin is empty"),
        (["embed", "one", " "], None, 2, "Text 2 is empty"),
        (["embed", "word " * 40], None, 1, "takes 16 at most"),
        (["embed", "--dimensions", "5", "one"], None, 2, "dimensions is 5"),
    ],
)
def test_what_is_wrong_is_said(call: Call, arguments: list[str], stdin: bytes | None, code: int, said: str) -> None:
    found = call(*arguments, stdin=stdin, app=APP)
    assert (found.code, found.out) == (code, "")
    assert said in found.err


def test_a_long_text_is_cut_if_asked(call: Call) -> None:
    found = call("embed", "--truncate", "word " * 40, "one", app=APP)
    first, second = map(json.loads, found.out.splitlines())
    assert first["truncated"] and "truncated" not in second
    assert "1 of 2 texts were cut to 16 tokens." in found.err
