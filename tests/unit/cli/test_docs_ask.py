"""`edge docs ask` and `edge docs warm`, with a fake model and real collections."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.kv.blocks import fingerprint
from edge.kv.open import open_block_store
from edge_cli.app import App
from tests.unit.cli.conftest import Call

MODEL = fingerprint({"weights": "a"})
FILES = {
    "care.md": "# Care\n\nClean the filter of the pump every month, with warm water and a soft brush, and reset it then.\n",
    "reset.md": "# Reset\n\nTo reset the pump, hold the red button for five seconds, until the light goes out.\n",
    "warranty.txt": "The warranty lasts for two years from the day of purchase, and covers all parts but the filter.\n",
}
QUESTION = "How do I reset the pump?"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Path:
    """A folder with three documents, in the collections "docs" and "manual"."""
    monkeypatch.setenv("EDGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EDGE_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    for name in ("docs", "manual"):
        assert call("docs", "add", "--words", ".", "-c", name).code == 0
    return folder


@pytest.fixture
def app(fake_app: Callable[..., App]) -> App:
    return fake_app(script=lambda _: "Hold the red button [2].", n_ctx=8192)


def test_the_answer_and_below_it_where_it_comes_from(call: Call, app: App, files: Path) -> None:
    result = call("docs", "ask", *QUESTION.split(), app=app)
    assert result.code == 0, result.err
    assert result.out == "Hold the red button [2].\n\n(1) care.md:1  Care\n[2] reset.md:1  Reset\n"
    assert result.err == ""


def test_paths_elsewhere_are_whole(call: Call, app: App, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    shown = call("docs", "ask", "-c", "manual", QUESTION, app=app).out
    assert f"[2] {files.relative_to(tmp_path.parent)}/reset.md:1  Reset\n" in shown
    monkeypatch.chdir("/")
    assert "/reset.md:1  Reset\n" in call("docs", "ask", QUESTION, app=app).out


def test_json_has_all_of_it(call: Call, app: App, files: Path) -> None:
    found = json.loads(call("docs", "ask", "--json", QUESTION, app=app).out)
    assert (found["text"], found["is_found"]) == ("Hold the red button [2].", True)
    assert [(one["number"], one["place"], one["is_cited"]) for one in found["citations"]] == [
        (1, "care.md:1-3", False),
        (2, "reset.md:1-3", True),
    ]
    assert found["citations"][1]["document"] == str(files / "reset.md")
    lines = [json.loads(line) for line in call("docs", "ask", "--jsonl", QUESTION, app=app).out.splitlines()]
    assert "".join(line["text"] for line in lines[:-1]) == found["text"]
    assert lines[-1]["type"] == "done"


def test_nothing_found_is_said_and_the_answer_has_no_list(call: Call, fake_app: Callable[..., App], files: Path) -> None:
    result = call("docs", "ask", "Who painted the chapel?", app=fake_app(script=lambda _: "Michelangelo."))
    assert (result.code, result.out) == (0, "Michelangelo.\n")
    assert result.err == "Nothing about this was found in docs. The answer rests on no document.\n"
    assert not json.loads(call("docs", "ask", "--json", "Who painted the chapel?", app=fake_app()).out)["is_found"]


def test_a_question_may_come_from_stdin(call: Call, app: App, files: Path) -> None:
    assert "[2] reset.md:1" in call("docs", "ask", stdin=QUESTION.encode(), app=app).out


def test_what_is_wrong_is_told_before_a_model_is_loaded(call: Call, fake_app: Callable[..., App], files: Path) -> None:
    loads: list[dict[str, Any]] = []
    result = call("docs", "ask", "-c", "nothing", "Hi", app=fake_app(loads))
    assert result.code == 2
    assert "There is no collection of documents 'nothing'" in result.err
    assert "docs, manual" in result.err
    assert call("docs", "ask", "--json", "--raw", "Hi", app=fake_app(loads)).code == 2
    assert call("docs", "ask", app=fake_app(loads)).code == 2
    assert loads == []


def disk_app(**backend: Any) -> App:
    def load(*, settings: Any, store: Any, on_progress: Any) -> Assistant:
        disk = DiskCache(open_block_store(settings), MODEL) if settings.kv.enabled else None
        return Assistant(FakeBackend(n_ctx=8192, **backend), store=store, sampling=settings.sampling, disk=disk)

    return App(load=load)


def asked(call: Call, question: str = QUESTION) -> dict[str, Any]:
    found = call("docs", "ask", "--json", question, app=disk_app(script=lambda _: "Yes [1]."))
    assert found.code == 0, found.err
    result: dict[str, Any] = json.loads(found.out)
    return result


def test_a_warmed_collection_is_answered_from_the_disk(call: Call, files: Path) -> None:
    result = call("docs", "warm", app=disk_app())
    assert (result.code, result.out) == (0, "")
    assert "3 of 3 beginnings" in result.err
    assert "stored and pinned" in result.err
    assert "warm:docs:docs" in call("kv", "ls").out
    found = asked(call)
    first = found["citations"][0]
    assert found["usage"]["n_restored"] > len(first["text"]), "the instructions and the first passage"
    assert not call("kv", "gc").code
    assert asked(call, "How do I clean the filter of the pump?")["usage"]["n_restored"] > 300


def test_what_was_asked_twice_is_warmed_whole(call: Call, files: Path) -> None:
    for _ in range(2):
        asked(call)
    call("kv", "clear")
    found = json.loads(call("docs", "warm", "--most", "4", "--json", app=disk_app()).out)
    assert (found["n_starts"], found["n_wanted"], found["is_complete"], found["is_pinned"]) == (3, 3, True, True)
    usage = asked(call)["usage"]
    assert usage["n_restored"] > 0.9 * usage["n_prompt"] - len(QUESTION) - 60


def test_a_limit_a_pin_that_ends_and_none(call: Call, files: Path) -> None:
    found = json.loads(call("docs", "warm", "--most", "1", "--days", "7", "--json", app=disk_app()).out)
    assert (found["n_starts"], found["days"]) == (1, 7.0)
    assert found["n_stored"] > 300
    assert "pinned" not in call("docs", "warm", "--no-pin", app=disk_app()).err
    assert "pinned" not in call("kv", "ls").out, "what was pinned before is unpinned"
    assert call("docs", "warm", "--no-pin", "--days", "7", app=disk_app()).code == 2
    assert call("docs", "warm", "-c", "nothing", app=disk_app()).code == 2


def test_without_the_cache_there_is_nothing_to_warm(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_KV_ENABLED", "false")
    result = call("docs", "warm", app=disk_app())
    assert result.code == 2
    assert "kv.enabled true" in result.err


def test_ctrl_c_keeps_what_is_done(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_cli import docs_warm

    follow, n_calls = docs_warm.follow_prefill, []

    def interrupted(reply: Any, report: Any) -> bool:
        n_calls.append(1)
        return follow(reply, _raise if len(n_calls) == 2 else report)

    monkeypatch.setattr(docs_warm, "follow_prefill", interrupted)
    result = call("docs", "warm", app=disk_app(prefill_delay_s=0.2))
    assert result.code == 130
    assert "1 of 3 beginnings" in result.err
    assert "goes on from there" in result.err
    monkeypatch.setattr(docs_warm, "follow_prefill", follow)
    found = json.loads(call("docs", "warm", "--json", app=disk_app()).out)
    assert found["n_starts"] == 3
    assert found["n_reused"] > 300


def _raise(*_: object) -> None:
    raise KeyboardInterrupt


def test_removing_documents_deletes_what_was_warmed(call: Call, files: Path) -> None:
    call("docs", "warm", app=disk_app())
    assert call("docs", "rm", "reset.md").code == 0
    assert "warm:docs:docs" not in call("kv", "ls").out
    call("docs", "warm", app=disk_app())
    assert call("docs", "rm", "--all", "--yes").code == 0
    assert call("kv", "ls").out == ""
